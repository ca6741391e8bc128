// What attention's kernels share: who sees whom, and products of tiles in shared memory.
//
// A tile is R rows (queries or keys) of D values in the accumulation type, zero past the tensor's end. A block's
// threads form a square of X by X. Thread (y, x) holds rows y M ... y M + M - 1, and of those rows
//   in a product of two tiles' rows (R x R, the scores): columns x, x + X, x + 2 X, ...
//   in a result (R x D): for n < N the W neighbouring columns from (n X + x) W on.
// So the X threads that share rows are neighbouring lanes of one warp: a row is reduced by shuffles, and handed from
// one product to the next through shared memory with no more than __syncwarp. Each operand is read 16 bytes at a time;
// 16 bytes between the rows of a tile put neighbouring rows into different banks.
#pragma once
#include "../common/philox.h"
#include "../common/reduce.cuh"
#include "../common/score.cuh"
#include "../common/vector.cuh"
#include "attention.h"

namespace minigpt {

// For a kernel that keeps `Tiles` tiles of at most `TileBytes`, and the scores.
template <class Accumulate, int HeadDim, int Tiles, int TileBytes>
struct Tiling {
  using A = Accumulate;
  static constexpr int D = HeadDim, fit = TileBytes / (D * int(sizeof(A))), most = 256 / int(sizeof(A));
  static constexpr int R = fit < most ? fit : most;  // up to 64; of double, up to 32
  static constexpr int X = R < 16 ? R : 16, M = R / X, threads = X * X;
  static constexpr int V = 16 / int(sizeof(A)), W = V < D / X ? V : D / X, N = D / (X * W);
  static constexpr int pitch = D + V, tile = R * pitch;
  static constexpr int score_pitch = M > 1 ? R + 16 / M : R, score_tile = R * score_pitch;
  static constexpr size_t smem = (size_t(Tiles) * tile + score_tile) * sizeof(A);
  static_assert(threads % 32 == 0 && R == X * M && D == N * X * W && R <= 4 * X && R % 4 == 0);
  static_assert(smem <= 99 * 1024, "more shared memory than a block may have on every device since 8.0");
};

template <class L>
using Scores = typename L::A[L::M][L::M];
template <class L>
using Result = Vec<typename L::A, L::W>[L::M][L::N];

// ---- who sees whom ------------------------------------------------------------------------------------------------

struct Range {
  int64_t begin, end;
};

DEVICE int64_t clamped(int64_t v, int64_t low, int64_t high) { return v < low ? low : v > high ? high : v; }

// The keys that any of R queries from i on can see, and the queries that can see any of R keys from j on. Both begin at
// a multiple of R, so that a tile's place does not depend on who reads it.
DEVICE Range keys_of(const AttentionShape& s, int64_t i, int64_t R) {
  Range keys = {0, s.S};
  if (!s.causal) return keys;
  const int64_t position = i + s.S - s.T;
  keys.end = clamped(position + R, 0, s.S);
  if (s.window > 0 && s.window < s.S) keys.begin = clamped(position - s.window + 1, 0, s.S) / R * R;
  return keys;
}

DEVICE Range queries_of(const AttentionShape& s, int64_t j, int64_t R) {
  Range queries = {0, s.T};
  if (!s.causal) return queries;
  const int64_t same_position = j + s.T - s.S;
  queries.begin = clamped(same_position, 0, s.T) / R * R;
  if (s.window > 0 && s.window < s.S) queries.end = clamped(same_position + R - 1 + s.window, 0, s.T);
  return queries;
}

// Which pairs (query i0 + i, key j0 + j) of an R x R tile see each other. Within a tile 32 bits are enough.
struct Mask {
  int queries, keys;      // how many exist
  int nearest, furthest;  // j - i lies between these

  DEVICE bool operator()(int i, int j) const {
    return i < queries && j < keys && j - i <= nearest && j - i >= furthest;
  }
};

DEVICE Mask mask_of(const AttentionShape& s, int64_t i0, int64_t j0, int R) {
  const int64_t same_position = i0 + s.S - s.T - j0;  // j - i of a query and the key at its own position
  Mask mask = {int(clamped(s.T - i0, 0, R)), int(clamped(s.S - j0, 0, R)), R, -R};
  if (s.causal) mask.nearest = int(clamped(same_position, -R, R));
  if (s.window > 0 && s.window < s.S) mask.furthest = int(clamped(same_position - s.window + 1, -R, R));
  return mask;
}

// ---- tiles --------------------------------------------------------------------------------------------------------

// Row r of the tile from rows + r * stride, for r < count. No alignment is asked.
template <class L, class T>
DEVICE void load_tile(typename L::A* tile, const T* rows, int64_t stride, int64_t count, int64_t D) {
  using Part = Vec<typename L::A, L::V>;
  constexpr int parts = L::D / L::V;
  static_assert(L::R * parts % L::threads == 0);
  if (is_aligned<T, L::V>(rows) && stride % L::V == 0 && D % L::V == 0) {  // every part is whole, or past the end
#pragma unroll 4
    for (int step = 0; step < L::R * parts / L::threads; ++step) {
      const int i = step * L::threads + threadIdx.x, r = i / parts, d = i % parts * L::V;
      Part part = {};
      if (r < count && d < D) part = load_whole<L::V>(rows + r * stride + d);
      store_vec(reinterpret_cast<Part*>(tile + r * L::pitch + d), part);
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < L::R * L::D; i += L::threads) {
      const int r = i / L::D, d = i % L::D;
      tile[r * L::pitch + d] = r < count && d < D ? static_cast<typename L::A>(rows[r * stride + d]) : 0;
    }
  }
}

// scores[i][j] = <row y M + i of a, row x + X j of b>
template <class L>
DEVICE void multiply_rows(Scores<L>& scores, const typename L::A* a, const typename L::A* b, int64_t D) {
  using Part = Vec<typename L::A, L::V>;
  a += threadIdx.x / L::X * L::M * L::pitch;
  b += threadIdx.x % L::X * L::pitch;
#pragma unroll
  for (int i = 0; i < L::M; ++i)
#pragma unroll
    for (int j = 0; j < L::M; ++j) scores[i][j] = 0;
#pragma unroll 1
  for (int d = 0; d < int(D); d += L::V) {
    Part left[L::M];
#pragma unroll
    for (int i = 0; i < L::M; ++i) left[i] = load_vec(reinterpret_cast<const Part*>(a + i * L::pitch + d));
#pragma unroll
    for (int j = 0; j < L::M; ++j) {
      const Part right = load_vec(reinterpret_cast<const Part*>(b + j * L::X * L::pitch + d));
#pragma unroll
      for (int i = 0; i < L::M; ++i)
#pragma unroll
        for (int e = 0; e < L::V; ++e) scores[i][j] += left[i].at[e] * right.at[e];
    }
  }
}

// Puts scores where add_product finds them: within the warp, whose lanes then share whole rows.
template <class L>
DEVICE void share_scores(typename L::A* tile, const Scores<L>& scores) {
  tile += threadIdx.x / L::X * L::M * L::score_pitch + threadIdx.x % L::X;
  __syncwarp();  // the rows shared before may still be being read
#pragma unroll
  for (int i = 0; i < L::M; ++i)
#pragma unroll
    for (int j = 0; j < L::M; ++j) tile[i * L::score_pitch + j * L::X] = scores[i][j];
  __syncwarp();
}

// result += scores * tile, over the tile's R rows
template <class L>
DEVICE void add_product(Result<L>& result, const typename L::A* scores, const typename L::A* tile) {
  using Four = Vec<typename L::A, L::V>;
  using Part = Vec<typename L::A, L::W>;
  scores += threadIdx.x / L::X * L::M * L::score_pitch;
  tile += threadIdx.x % L::X * L::W;
#pragma unroll 1
  for (int r = 0; r < L::R; r += L::V) {
    Four left[L::M];
#pragma unroll
    for (int i = 0; i < L::M; ++i) left[i] = load_vec(reinterpret_cast<const Four*>(scores + i * L::score_pitch + r));
#pragma unroll
    for (int e = 0; e < L::V; ++e)
#pragma unroll
      for (int n = 0; n < L::N; ++n) {
        const Part right = load_vec(reinterpret_cast<const Part*>(tile + (r + e) * L::pitch + n * L::X * L::W));
#pragma unroll
        for (int i = 0; i < L::M; ++i)
#pragma unroll
          for (int w = 0; w < L::W; ++w) result[i][n].at[w] += left[i].at[e] * right.at[w];
      }
  }
}

// factor times row i of the result to out + i * stride, for rows below count. `out` is that of the tile's first row.
template <class L, class T>
DEVICE void store_result(T* out, int64_t stride, int64_t count, int64_t D, Result<L>& result, typename L::A factor) {
  const int y = threadIdx.x / L::X, x = threadIdx.x % L::X;
#pragma unroll
  for (int i = 0; i < L::M; ++i) {
    const int row = y * L::M + i;
    if (row >= count) return;
#pragma unroll
    for (int n = 0; n < L::N; ++n) {
      const int d = (n * L::X + x) * L::W;
#pragma unroll
      for (int w = 0; w < L::W; ++w) result[i][n].at[w] *= factor;
      store_part<L::W>(out + row * stride + d, result[i][n], D - d);
    }
  }
}

// ---- dropout ------------------------------------------------------------------------------------------------------

// Bit j: query i keeps key j0 + x + X j, for the thread's columns x + X j of the scores. One Philox call serves four
// neighbouring keys: each lane makes it for four of the tile's columns, and gives the bits to the lanes that own them.
template <class L>
DEVICE unsigned kept_keys(const AttentionShape& s, uint64_t seed, int64_t bh, int64_t i, int64_t j0) {
  const int x = threadIdx.x % L::X;
  const PhiloxWords words = attention_dropout_words(seed, bh, i, j0 + 4 * x);
  unsigned four = 0, kept = 0;
#pragma unroll
  for (int w = 0; w < 4; ++w) four |= unsigned(words.word[w] >= s.dropout_threshold) << w;
#pragma unroll
  for (int j = 0; j < L::M; ++j) {
    const int column = x + L::X * j;
    kept |= (__shfl_sync(kAllLanes, four, column / 4, L::X) >> column % 4 & 1) << j;
  }
  return kept;
}

// The same with keys as rows: bit i: query i0 keeps key j + i, for i < M; j is a multiple of M.
template <class L>
DEVICE unsigned kept_rows(const AttentionShape& s, uint64_t seed, int64_t bh, int64_t i0, int64_t j) {
  const PhiloxWords words = attention_dropout_words(seed, bh, i0, j);
  unsigned four = 0;
#pragma unroll
  for (int w = 0; w < 4; ++w) four |= unsigned(words.word[w] >= s.dropout_threshold) << w;
  return four >> j % 4;
}

}  // namespace minigpt
