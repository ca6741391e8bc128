// RMSNorm over the last dimension (Zhang and Sennrich, 2019): what a kernel is handed. No torch in here.
//   rstd = 1 / sqrt(avg(x^2) + eps)   xhat = x * rstd   y = xhat * weight
//   g = dy * weight   dx = rstd * (g - xhat * avg(g * xhat))   dweight = sum_rows dy * xhat
// With a residual: s = residual + x, y = RMSNorm(s); ds, the gradient of s, is added to what dx is above.
#pragma once
#include <cstdint>

#include "../common/cuda_stream.h"
#include "../common/dtype.h"

namespace minigpt {

// Where the rows of x lie: row r is at r / inner * outer_stride + r % inner * inner_stride. So the queries of a packed
// projection (B, T, 3, H, D) are read in place: H heads of D values within a token, one token behind the other.
struct RowLayout {
  int64_t inner, inner_stride, outer_stride;  // strides in elements
};

struct RmsNormForwardParams {
  int64_t rows, C;
  DType dtype, weight_dtype;  // equal, or bf16/f16 x with f32 weights
  DType residual_dtype;       // dtype, or f32 beside a bf16/f16 x with f32 weights
  const void* x;              // (rows, C) by layout; C is contiguous; dtype
  RowLayout layout;           // row behind row where there is a residual
  const void* residual;       // (rows, C), contiguous, residual_dtype; may be null: x is normed itself
  const void* weight;         // (C,), weight_dtype
  double eps;
  void* s;     // (rows, C), contiguous, residual_dtype: residual + x; null without a residual
  void* y;     // (rows, C), contiguous, dtype
  void* rstd;  // (rows,), float (double for f64); null where no backward follows
};

struct RmsNormBackwardParams {
  int64_t rows, C;
  DType dtype, weight_dtype, residual_dtype;
  const void* dy;  // (rows, C), contiguous, dtype
  const void* s;   // (rows, C) by layout, residual_dtype: what was normed, x where there was no residual
  RowLayout layout;
  const void* ds;      // (rows, C), contiguous, residual_dtype; may be null
  const void* weight;  // (C,), weight_dtype
  const void* rstd;    // (rows,)
  void* dx;            // (rows, C), contiguous, dtype
  void* dresidual;     // (rows, C), contiguous, residual_dtype: dx rounded to it; null where that is dx
  void* dweight;       // (C,), weight_dtype
  void* partial;       // scratch, (chunks, C): the chunks' shares of dweight; float (double for f64)
  int64_t chunks;      // of common/column_sums.h
};

void rms_norm_forward_cpu(const RmsNormForwardParams& p);
// Rows [begin, end) alone, on the calling thread.
void rms_norm_forward_rows_cpu(const RmsNormForwardParams& p, int64_t begin, int64_t end);
void rms_norm_backward_cpu(const RmsNormBackwardParams& p);
void rms_norm_forward_cuda(const RmsNormForwardParams& p, CudaStream stream);
void rms_norm_backward_cuda(const RmsNormBackwardParams& p, CudaStream stream);

}  // namespace minigpt
