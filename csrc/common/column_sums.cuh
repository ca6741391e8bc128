// What LayerNorm's and RMSNorm's kernels share: teams of threads that take a row, and the sums over rows, column by column.
#pragma once
#include "column_sums.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace minigpt {

constexpr int kRowThreads = 256;  // a block: one team of 256, or 8 teams of 32

// Elements a thread takes at a time: 16 bytes of the accumulation type.
template <class A>
constexpr int kRowWidth = 16 / int(sizeof(A));

constexpr int64_t kWarpRow = 1024;  // a row up to this long is a warp's: 8 rounds of 4 elements a lane, and no barrier

template <class F>
void dispatch_team(int64_t C, const F& f) {
  C <= kWarpRow ? f(std::integral_constant<int, 32>{}) : f(std::integral_constant<int, kRowThreads>{});
}

inline dim3 row_grid(int64_t rows, int team) {
  const int64_t each = kRowThreads / team;
  return grid_of((rows + each - 1) / each);
}

// For the column sums a block is a rectangle: 32 neighbouring columns (a warp's lanes) times 8 rows (its warps).
constexpr int kColumns = 32, kColumnRows = 8;
static_assert(kColumns * kColumnRows == kRowThreads);

__host__ DEVICE int64_t column_tiles(int64_t C) { return (C + kColumns - 1) / kColumns; }

// The sum over the 8 warps of what each holds for its lane's column, in the first warp; undefined in the others.
template <class A>
DEVICE A column_sum(A v) {
  const int lane = threadIdx.x % kColumns, warp = threadIdx.x / kColumns;
  SHARED(A[kColumnRows][kColumns], parts);
  __syncthreads();  // a sum before this one may still be being read
  parts[warp][lane] = v;
  __syncthreads();
  if (warp == 0)
    for (int other = 1; other < kColumnRows; ++other) v += parts[other][lane];
  return v;
}

// A block adds the chunks of the tile's 32 columns: partial (chunks, C), sums (C,).
template <class A, class Weight>
DEVICE void add_chunks(const A* partial, int64_t chunks, int64_t C, int64_t tile, Weight* sums) {
  const int64_t c = tile * kColumns + threadIdx.x % kColumns;
  A sum = 0;
  if (c < C)
    for (int64_t chunk = threadIdx.x / kColumns; chunk < chunks; chunk += kColumnRows) sum += partial[chunk * C + c];
  sum = column_sum(sum);
  if (threadIdx.x < kColumns && c < C) sums[c] = static_cast<Weight>(sum);
}

}  // namespace minigpt
