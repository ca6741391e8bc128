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

void gelu_forward_cpu(const GeluForwardParams& p);
void gelu_backward_cpu(const GeluBackwardParams& p);
void gelu_forward_cuda(const GeluForwardParams& p, CudaStream stream);
void gelu_backward_cuda(const GeluBackwardParams& p, CudaStream stream);

}  // namespace minigpt
