// LayerNorm over the last dimension: what a kernel is handed. No torch in here.
//   mean = avg(x)   rstd = 1 / sqrt(avg((x - mean)^2) + eps)   xhat = (x - mean) * rstd   y = xhat * weight + bias
//   g = dy * weight   dx = rstd * (g - avg(g) - xhat * avg(g * xhat))   dweight = sum_rows dy * xhat   dbias = sum_rows dy
// With a residual: s = residual + x, y = LayerNorm(s); ds, the gradient of s, is added to what dx is above.
// The variance is taken in a second pass over the row, around the mean, so that a large mean does not cancel it away.
#pragma once
#include <cstdint>

#include "../common/cuda_stream.h"
#include "../common/dtype.h"

namespace minigpt {

struct LayerNormForwardParams {
  int64_t rows, C;
  DType dtype, weight_dtype;  // equal, or bf16/f16 x with f32 weights
  DType residual_dtype;       // dtype, or f32 beside a bf16/f16 x with f32 weights
  const void* x;              // (rows, C), contiguous, dtype
  const void* residual;       // (rows, C), residual_dtype; may be null: x is normed itself
  const void *weight, *bias;  // (C,), weight_dtype; bias may be null
  double eps;
  void* s;            // (rows, C), residual_dtype: residual + x; null without a residual
  void* y;            // (rows, C), dtype
  void *mean, *rstd;  // (rows,), float (double for f64); null where no backward follows
};

struct LayerNormBackwardParams {
  int64_t rows, C;
  DType dtype, weight_dtype, residual_dtype;
  const void* dy;           // (rows, C), contiguous, dtype
  const void* s;            // (rows, C), contiguous, residual_dtype: what was normed, x where there was no residual
  const void* ds;           // likewise; may be null
  const void* weight;       // (C,), weight_dtype
  const void *mean, *rstd;  // (rows,)
  void* dx;                 // (rows, C), dtype
  void* dresidual;          // (rows, C), residual_dtype: dx rounded to it; null where that is dx
  void *dweight, *dbias;    // (C,), weight_dtype; dbias may be null
  void* partial;            // scratch, (2, chunks, C): the chunks' shares of dweight and dbias; float (double for f64)
  int64_t chunks;           // of common/column_sums.h
};

void layer_norm_forward_cpu(const LayerNormForwardParams& p);
// Rows [begin, end) alone, on the calling thread.
void layer_norm_forward_rows_cpu(const LayerNormForwardParams& p, int64_t begin, int64_t end);
void layer_norm_backward_cpu(const LayerNormBackwardParams& p);
void layer_norm_forward_cuda(const LayerNormForwardParams& p, CudaStream stream);
void layer_norm_backward_cuda(const LayerNormBackwardParams& p, CudaStream stream);

}  // namespace minigpt
