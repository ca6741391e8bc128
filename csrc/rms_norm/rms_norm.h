// RMSNorm over the last dimension (Zhang and Sennrich, 2019): what a kernel is handed. No torch in here.
//   rstd = 1 / sqrt(avg(x^2) + eps)   xhat = x * rstd   y = xhat * weight
//   g = dy * weight   dx = rstd * (g - xhat * avg(g * xhat))   dweight = sum_rows dy * xhat
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
  const void* x;              // (rows, C) by layout; C is contiguous; dtype
  RowLayout layout;
  const void* weight;  // (C,), weight_dtype
  double eps;
  void* y;     // (rows, C), contiguous, dtype
  void* rstd;  // (rows,), float (double for f64)
};

struct RmsNormBackwardParams {
  int64_t rows, C;
  DType dtype, weight_dtype;
  const void *dy, *x;  // (rows, C), dtype: dy contiguous, x by layout
  RowLayout layout;
  const void* weight;  // (C,), weight_dtype
  const void* rstd;    // (rows,)
  void* dx;            // (rows, C), contiguous, dtype
  void* dweight;       // (C,), weight_dtype
  void* partial;       // scratch, (chunks, C): the chunks' shares of dweight; float (double for f64)
  int64_t chunks;      // of common/column_sums.h
};

void rms_norm_forward_cpu(const RmsNormForwardParams& p);
void rms_norm_backward_cpu(const RmsNormBackwardParams& p);
void rms_norm_forward_cuda(const RmsNormForwardParams& p, CudaStream stream);
void rms_norm_backward_cuda(const RmsNormBackwardParams& p, CudaStream stream);

}  // namespace minigpt
