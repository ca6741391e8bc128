// A ScoreRule on the CPU, by rows of scores.
#pragma once
#include "score.h"
#include "simd.h"

namespace minigpt {

template <class A>
struct ScoreRows {
  A* scores;  // (rows, pitch), whole vectors
  A* gains;   // likewise, or null: with a softcap, the derivatives of the final scores in the raw ones
  int64_t rows, columns, pitch;
  int64_t distance;  // from the first row's query back to the first column's key
  int64_t step = 1;  // of the distance: up by it from row to row, down from column to column; -1 where rows are keys
  A scale = 1;       // of the raw scores
};

// A function of its own, so that kernels without a rule keep their registers.
template <class A>
struct FinalScores {
  template <int Bytes>
  static ALWAYS_INLINE void run(ScoreRows<A> r, A softcap, A alibi_slope) {
    using V = simd::Vector<A, Bytes>;
    constexpr int W = simd::lanes<A, Bytes>;
    V lane;
    for (int i = 0; i < W; ++i) lane[i] = A(r.step * i);
    for (int64_t i = 0; i < r.rows; ++i)
      for (int64_t j = 0; j < r.columns; j += W) {
        const int64_t at = i * r.pitch + j;
        V score = simd::load<Bytes>(r.scores + at) * r.scale;
        if (softcap > 0) {
          const auto [value, slope] = simd::tanh<Bytes>(score / softcap);
          score = softcap * value;
          if (r.gains) simd::store<Bytes>(r.gains + at, slope);
        }
        if (alibi_slope != 0) score -= alibi_slope * (A(r.distance + r.step * (i - j)) - lane);
        simd::store<Bytes>(r.scores + at, score);
      }
  }
};

// Raw scores of head h become final ones. Columns are taken in whole vectors.
template <class A, int Bytes>
ALWAYS_INLINE void apply(const ScoreRule& rule, int64_t h, ScoreRows<A> rows) {
  if (rule.is_plain() && rows.scale == 1) return;
  const A slope = rule.alibi_slopes ? static_cast<const A*>(rule.alibi_slopes)[h] : A(0);
  simd::call_from<FinalScores<A>, Bytes>(rows, A(rule.softcap), slope);
}

}  // namespace minigpt
