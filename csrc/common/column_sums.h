// Sums over rows, column by column, as LayerNorm and RMSNorm need them for their weights' gradients: row chunk c adds up its
// own rows' share, then the chunks are added in order. Chunks depend on the shape alone, so the result is the same for every
// number of threads, and no atomics are needed.
#pragma once
#include <cstdint>

namespace minigpt {

// Enough chunks for many threads or blocks, few enough that adding them up costs little. Rows are cut into this many runs
// of ceil(rows / chunks).
inline int64_t column_sum_chunks(int64_t rows, bool cuda) {
  const int64_t most = cuda ? 256 : 64, rows_at_least = cuda ? 4 : 16;
  const int64_t chunks = (rows + rows_at_least - 1) / rows_at_least;
  return chunks < 1 ? 1 : chunks < most ? chunks : most;
}

}  // namespace minigpt
