// GELU (Hendrycks and Gimpel, 2016): what a kernel is handed. No torch in here.
//   erf:   y = x * Phi(x)                          Phi: the normal distribution function, (1 + erf(x / sqrt 2)) / 2
//   tanh:  y = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))
#pragma once
#include <cstdint>

#include "../common/cuda_stream.h"
#include "../common/dtype.h"

namespace minigpt {

struct GeluForwardParams {
  int64_t n;
  DType dtype;
  bool tanh;      // else erf
  const void* x;  // n elements, contiguous
  void* y;        // likewise
};

struct GeluBackwardParams {
  int64_t n;
  DType dtype;
  bool tanh;
  const void *dy, *x;  // n elements each, in the same order
  void* dx;
};

// y = gelu(x + bias), the bias along the last dimension; dbias = sum_rows dx.
struct BiasGeluForwardParams {
  int64_t rows, C;
  DType dtype, bias_dtype;  // equal, or bf16/f16 x with an f32 bias
  bool tanh;
  const void *x, *bias;  // (rows, C), contiguous, dtype; (C,), bias_dtype
  void* y;               // (rows, C), dtype
};

struct BiasGeluBackwardParams {
  int64_t rows, C;
  DType dtype, bias_dtype;
  bool tanh;
  const void *dy, *x, *bias;  // (rows, C) each, contiguous, dtype; (C,), bias_dtype
  void *dx, *dbias;           // (rows, C), dtype; (C,), bias_dtype
  void* partial;              // scratch, (chunks, C): the chunks' shares of dbias; float (double for f64)
  int64_t chunks;             // of common/column_sums.h
};

void gelu_forward_cpu(const GeluForwardParams& p);
void gelu_backward_cpu(const GeluBackwardParams& p);
void gelu_forward_cuda(const GeluForwardParams& p, CudaStream stream);
void gelu_backward_cuda(const GeluBackwardParams& p, CudaStream stream);
// Elements, or rows, [begin, end) alone, on the calling thread.
void gelu_forward_range_cpu(const GeluForwardParams& p, int64_t begin, int64_t end);
void bias_gelu_forward_rows_cpu(const BiasGeluForwardParams& p, int64_t begin, int64_t end);

void bias_gelu_forward_cpu(const BiasGeluForwardParams& p);
void bias_gelu_backward_cpu(const BiasGeluBackwardParams& p);
void bias_gelu_forward_cuda(const BiasGeluForwardParams& p, CudaStream stream);
void bias_gelu_backward_cuda(const BiasGeluBackwardParams& p, CudaStream stream);

}  // namespace minigpt
