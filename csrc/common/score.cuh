// A ScoreRule on a GPU. Kernels are compiled with one and without, so that it costs nothing where there is none.
#pragma once
#include <cmath>

#include "reduce.cuh"
#include "score.h"

namespace minigpt {

template <class A>
struct Score {
  A value;  // the final score, in units of ln 2
  A gain;   // the softcap's derivative, which a gradient is multiplied by: 1 - tanh^2, or 1
};

// From a product <q, k> of head h to its score.
template <class A, bool kRule>
class ScoreOf {
 public:
  DEVICE ScoreOf(const ScoreRule& rule, double scale, int64_t h) : scale_(A(scale * kLog2e)) {
    if constexpr (kRule) {
      if (rule.softcap > 0) scale_ = A(scale / rule.softcap), softcap_ = A(rule.softcap * kLog2e);
      if (rule.alibi_slopes) slope_ = static_cast<const A*>(rule.alibi_slopes)[h] * A(kLog2e);
    }
  }

  // distance: of the query's position to the key's
  DEVICE Score<A> operator()(A product, A distance) const {
    Score<A> score = {product * scale_, A(1)};
    if constexpr (kRule) {
      if (softcap_ > 0) {
        const A e = std::exp(-2 * std::fabs(score.value)), r = 1 / (1 + e);
        score = {softcap_ * std::tanh(score.value), 4 * e * r * r};  // 1 - tanh^2 would cancel
      }
      if (slope_ != 0) score.value -= slope_ * distance;
    }
    return score;
  }

 private:
  A scale_, softcap_ = 0, slope_ = 0;
};

}  // namespace minigpt
