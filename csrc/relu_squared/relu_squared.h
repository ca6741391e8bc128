// Squared ReLU (Primer; So et al., 2021): what a kernel is handed. No torch in here.
//   y = max(x, 0)^2     dx = 2 max(x, 0) dy
#pragma once
#include <cstdint>

#include "../common/cuda_stream.h"
#include "../common/dtype.h"

namespace minigpt {

struct ReluSquaredForwardParams {
  int64_t n;
  DType dtype;
  const void* x;  // n elements, contiguous
  void* y;        // likewise
};

struct ReluSquaredBackwardParams {
  int64_t n;
  DType dtype;
  const void *dy, *x;  // n elements each, in the same order
  void* dx;
};

void relu_squared_forward_cpu(const ReluSquaredForwardParams& p);
void relu_squared_backward_cpu(const ReluSquaredBackwardParams& p);
void relu_squared_forward_cuda(const ReluSquaredForwardParams& p, CudaStream stream);
void relu_squared_backward_cuda(const ReluSquaredBackwardParams& p, CudaStream stream);

}  // namespace minigpt
