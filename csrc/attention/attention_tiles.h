// What the CPU's forward and backward share: how tensors are packed, which keys a query sees, and the mask.
//
// A tile of scores has keys for rows and queries for lanes, s^T = k q^T. So a softmax goes down the lanes and needs no sum
// across them, one Philox call's four keys are four rows, and of all operands only the few queries are turned over.
// Operands are packed in rows of whole vectors, filled up with zeros: widened to the accumulation type A, or, where the CPU
// has dot products of bf16, as pairs of neighbours along the dimension that a product sums over (common/gemm.h).
#pragma once
#include <algorithm>
#include <cmath>
#include <utility>

#include "../common/gemm.h"
#include "../common/philox_simd.h"
#include "../common/score_simd.h"
#include "../common/scratch.h"
#include "attention.h"

namespace minigpt {

constexpr int64_t kQueries = 32, kKeys = 64;  // a tile of scores: 8 KiB in float, beside its operands in the L1 cache
constexpr int64_t kFew = 4;                   // queries whose scores are dot products
constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <class T, simd::Isa isa>
struct Packing {
  using A = accumulate_t<T>;
  static constexpr bool pairs = std::is_same_v<T, bfloat16> && isa.bf16;
  using E = std::conditional_t<pairs, uint32_t, A>;
  using V = simd::Vector<E, isa.bytes>;
  static constexpr int64_t depth = pairs ? 2 : 1;  // numbers in an E
  static constexpr int W = simd::lanes<A, isa.bytes>;

  // Packed elements that n numbers along the summed dimension take.
  static ALWAYS_INLINE int64_t packed(int64_t n) { return (n + depth - 1) / depth; }
  // A row of them, D long.
  static ALWAYS_INLINE int64_t width(int64_t D) { return round_up(packed(D), W); }

  // What `columns` fills for queries up to a whole number of blocks, the last of which may be a few rows.
  static ALWAYS_INLINE int64_t columns_size(int64_t queries, int64_t D) { return queries * packed(D) + kFew * W; }

  // W packed elements of a row of which n > 0 numbers are left.
  static ALWAYS_INLINE V load(const T* row, int64_t n) {
    if constexpr (pairs) {
      V words = {};
      if (n >= 2 * W)
        memcpy(&words, row, sizeof words);
      else
        memcpy(&words, row, 2 * n);
      return words;
    } else {
      return simd::load_part<isa.bytes>(row, n);
    }
  }

  // Rows to be summed along D: (rows, width). Those from n on are zeros.
  static ALWAYS_INLINE void rows_along(E* to, const T* from, int64_t stride, int64_t n, int64_t rows, int64_t D) {
    const int64_t w = width(D);
    for (int64_t r = 0; r < n; ++r)
      for (int64_t d = 0; d < w; d += W) *(V*)(to + r * w + d) = load(from + r * stride + d * depth, D - d * depth);
    std::fill_n(to + n * w, (rows - n) * w, E(0));
  }

  // Rows to be summed over: (packed(n), D_padded).
  static ALWAYS_INLINE void rows_over(E* to, const T* from, int64_t stride, int64_t n, int64_t D) {
    for (int64_t r = 0; r < n; r += depth)
      for (int64_t d = 0; d < D; d += W, to += W) {
        const T* row = from + r * stride + d;
        if constexpr (pairs) {
          using F = simd::Vector<float, isa.bytes>;
          const F even = simd::load_part<isa.bytes>(row, D - d);
          const F odd = r + 1 < n ? simd::load_part<isa.bytes>(row + stride, D - d) : F{};
          *(V*)to = (V)even >> 16 | (V)odd;
        } else {
          *(V*)to = simd::load_part<isa.bytes>(row, D - d);
        }
      }
  }

  template <int... I>
  static ALWAYS_INLINE void transpose_step(const V* from, V* to, std::integer_sequence<int, I...>) {
    for (int i = 0; i < W / 2; ++i) {  // interleave lines i and i + W/2
      to[2 * i] = __builtin_shufflevector(from[i], from[i + W / 2], (I % 2 ? W + I / 2 : I / 2)...);
      to[2 * i + 1] = __builtin_shufflevector(from[i], from[i + W / 2], (I % 2 ? W + (W + I) / 2 : (W + I) / 2)...);
    }
  }

  // n (<= kQueries) rows turned over: (packed(D), kQueries), with zeros in the columns from n on up to whole vectors.
  // A W x W block is transposed in registers by log2(W) rounds of interleaving its lines.
  static ALWAYS_INLINE void columns(E* to, const T* from, int64_t stride, int64_t n, int64_t D) {
    const int64_t lines = packed(D);
    if (n <= kFew) return rows_along(to, from, stride, n, n, D);  // as they are: see scores
    for (int64_t i = 0; i < n; i += W)
      for (int64_t d = 0; d < lines; d += W) {
        V a[W], b[W];
        for (int r = 0; r < W; ++r) a[r] = i + r < n ? load(from + (i + r) * stride + d * depth, D - d * depth) : V{};
        constexpr int rounds = W == 2 ? 1 : W == 4 ? 2 : W == 8 ? 3 : 4;
        for (int round = 0; round < rounds; ++round) {
          transpose_step(a, b, std::make_integer_sequence<int, W>{});
          for (int r = 0; r < W; ++r) a[r] = b[r];
        }
        for (int64_t r = 0; r < W && d + r < lines; ++r) *(V*)(to + (d + r) * kQueries + i) = a[r];
      }
  }

  // The product of rows_along with the columns of n queries. The rows of a few are met by dot products: with few lanes of
  // W in use, the sums of a register block would mostly wait for each other.
  static ALWAYS_INLINE void scores(const GemmParams<E>& g, int64_t n) {
    if (n > kFew) return product(g);
    using F = simd::Vector<A, isa.bytes>;
    const int64_t w = round_up(g.K, W);
    for (int64_t r = 0; r < g.M; ++r) {
      F line[(kFew + W - 1) / W] = {};
      for (int64_t i = 0; i < n; ++i) {
        F sum = {};
        for (int64_t d = 0; d < w; d += W) {
          const V a = *(const V*)(g.a + r * g.a_row + d), b = *(const V*)(g.b + i * w + d);
          if constexpr (pairs)
            sum = simd::dot_bf16<isa>(sum, a, b);
          else
            sum += a * b;
        }
        line[i / W][i % W] = simd::sum(sum);
      }
      for (int64_t i = 0; i < n; i += W) simd::store<isa.bytes>(g.c + r * g.c_row + i, line[i / W]);
    }
  }

  static ALWAYS_INLINE void product(const GemmParams<E>& g) { simd::call_dots_from<Gemm<E>, isa>(g); }
};

// Calls Body<T>::run<isa>(args...) for the instruction set in use. Dot products are asked for by bf16 alone.
template <class Body>
struct WithoutDots {
  template <int Bytes, class... Args>
  static ALWAYS_INLINE void run(Args... args) {
    Body::template run<simd::Isa{Bytes, false, false}>(args...);
  }
};

template <class T, class Body, class... Args>
void call_for(Args... args) {
#ifdef MINIGPT_DOTS
  if constexpr (std::is_same_v<T, bfloat16>)
    if (simd::level() == simd::Level::avx512_bf16)
      return simd::run_dots_avx512_bf16<Body, simd::Isa{64, true, true}>(args...);
#endif
  simd::call<WithoutDots<Body>>(args...);
}

// Whether there is so much work, some 10 us, that waking other threads for it pays. A head costs time however short it is.
inline bool worth_waking(const AttentionShape& s) {
  return s.B * s.H * (s.T * s.S * (s.D + 16) + 64 * s.D + 4096) > 1 << 19;
}

// Which keys of the tile from key `j0` on query i sees: [first, last), within 0 ... n.
struct Range {
  int64_t first, last;
};

inline Range visible(const AttentionShape& s, int64_t i, int64_t j0, int64_t n) {
  const int64_t position = i + s.S - s.T;
  if (!s.causal) return {0, n};
  const int64_t last = std::clamp<int64_t>(position + 1 - j0, 0, n);
  const int64_t first = s.window ? std::clamp<int64_t>(position - s.window + 1 - j0, 0, last) : 0;
  return {first, last};
}

// The keys that any of the queries [begin, end) sees, as a range that begins at a tile.
inline Range keys_of(const AttentionShape& s, int64_t begin, int64_t end) {
  if (!s.causal) return {0, s.S};
  const int64_t shift = s.S - s.T, last = std::clamp<int64_t>(end + shift, 0, s.S);
  const int64_t first = s.window ? std::max<int64_t>(0, begin + shift - s.window + 1) / kKeys * kKeys : 0;
  return {std::min(first, last), last};
}

// The queries that see any of the keys [begin, end), as a range that begins at a multiple of `block`.
inline Range queries_of(const AttentionShape& s, int64_t begin, int64_t end, int64_t block) {
  if (!s.causal) return {0, s.T};
  const int64_t shift = s.S - s.T;
  const int64_t first = std::clamp<int64_t>(begin - shift, 0, s.T) / block * block;
  const int64_t last = s.window ? std::clamp<int64_t>(end - 1 + s.window - shift, 0, s.T) : s.T;
  return {std::min(first, last), last};
}

// Scores of n_keys keys (rows, from j0 on, filled up to `rows`) and n queries (lanes, from i0 on): minus infinity where the
// query does not see the key.
template <class A, int Bytes>
ALWAYS_INLINE void mask_tile(const AttentionShape& s, A* scores, int64_t i0, int64_t n, int64_t j0, int64_t n_keys,
                             int64_t rows) {
  using V = simd::Vector<A, Bytes>;
  constexpr int W = simd::lanes<A, Bytes>;
  const int64_t position = i0 + s.S - s.T - j0;  // the first query's, in rows of this tile
  V lane;
  for (int i = 0; i < W; ++i) lane[i] = A(i);
  // Every query sees the rows up to the first one's position, if a window does not end before them.
  const int64_t sure = !s.causal ? n_keys : s.window ? 0 : std::clamp<int64_t>(position + 1, 0, n_keys);
  for (int64_t r = sure; r < rows; ++r)
    for (int64_t i = 0; i < n; i += W) {
      A* at = scores + r * kQueries + i;
      // Lane l sees row r where position + i + l - window < r <= position + i + l.
      const V first = V{} + A(r < n_keys ? r - position - i : kQueries);
      const V last = V{} + A(s.window && r < n_keys ? r - position - i + s.window : kQueries);
      *(V*)at = (lane >= first) & (lane < last) ? simd::load<Bytes>(at) : V{} - INFINITY;
    }
}

}  // namespace minigpt
