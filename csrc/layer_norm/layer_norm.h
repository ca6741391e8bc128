// LayerNorm over the last dimension: what a kernel is handed. No torch in here.
//   mean = avg(x)   rstd = 1 / sqrt(avg((x - mean)^2) + eps)   xhat = (x - mean) * rstd   y = xhat * weight + bias
//   g = dy * weight   dx = rstd * (g - avg(g) - xhat * avg(g * xhat))   dweight = sum_rows dy * xhat   dbias = sum_rows dy
// The variance is taken in a second pass over the row, around the mean, so that a large mean does not cancel it away.
#pragma once
#include <cstdint>

#include "../common/cuda_stream.h"
#include "../common/dtype.h"

namespace minigpt {

struct LayerNormForwardParams {
  int64_t rows, C;
  DType dtype, weight_dtype;  // equal, or bf16/f16 x with f32 weights
  const void* x;              // (rows, C), contiguous, dtype
  const void *weight, *bias;  // (C,), weight_dtype; bias may be null
  double eps;
  void* y;            // (rows, C), dtype
  void *mean, *rstd;  // (rows,), float (double for f64)
};

struct LayerNormBackwardParams {
  int64_t rows, C;
  DType dtype, weight_dtype;
  const void *dy, *x;       // (rows, C), contiguous, dtype
  const void* weight;       // (C,), weight_dtype
  const void *mean, *rstd;  // (rows,)
  void* dx;                 // (rows, C), dtype
  void *dweight, *dbias;    // (C,), weight_dtype; dbias may be null
  // Scratch: row chunk c sums its own rows' share of dweight and dbias, then the chunks are added in order. Chunks depend on
  // the shape alone, so the result is the same for every number of threads, and no atomics are needed.
  void* partial;   // (2, chunks, C), float (double for f64)
  int64_t chunks;  // rows are cut into `chunks` runs of ceil(rows / chunks)
};

// Enough chunks for many threads or blocks, few enough that adding them up costs little.
inline int64_t layer_norm_backward_chunks(int64_t rows, bool cuda) {
  const int64_t most = cuda ? 256 : 64, rows_at_least = cuda ? 4 : 16;
  const int64_t chunks = (rows + rows_at_least - 1) / rows_at_least;
  return chunks < 1 ? 1 : chunks < most ? chunks : most;
}

void layer_norm_forward_cpu(const LayerNormForwardParams& p);
void layer_norm_backward_cpu(const LayerNormBackwardParams& p);
void layer_norm_forward_cuda(const LayerNormForwardParams& p, CudaStream stream);
void layer_norm_backward_cuda(const LayerNormBackwardParams& p, CudaStream stream);

}  // namespace minigpt
