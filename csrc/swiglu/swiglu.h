// SwiGLU (Shazeer, 2020): what a kernel is handed. No torch in here.
//   x = [gate, up]     s = sigmoid(gate) = 1 / (1 + e^(-gate))     y = silu(gate) up, silu(gate) = gate s
//   dgate = dy up (s + gate s (1 - s))     dup = dy silu(gate)
#pragma once
#include <cstdint>

#include "../common/cuda_stream.h"
#include "../common/dtype.h"

namespace minigpt {

struct SwigluForwardParams {
  int64_t rows, F;
  DType dtype;
  const void* x;  // (rows, 2 F), contiguous: a row is F values of gate, then F of up
  void* y;        // (rows, F)
};

struct SwigluBackwardParams {
  int64_t rows, F;
  DType dtype;
  const void* dy;  // (rows, F), contiguous
  const void* x;   // (rows, 2 F)
  void* dx;        // (rows, 2 F): dgate, then dup
};

void swiglu_forward_cpu(const SwigluForwardParams& p);
void swiglu_backward_cpu(const SwigluBackwardParams& p);
void swiglu_forward_cuda(const SwigluForwardParams& p, CudaStream stream);
void swiglu_backward_cuda(const SwigluBackwardParams& p, CudaStream stream);

}  // namespace minigpt
