// Dropout: what a kernel is handed. No torch in here.
//   out = (residual +) x / (1 - p) where element i is kept, (residual +) 0 where it is dropped
// The mask is a function of seed and i alone (common/philox.h), so that the backward makes it anew: it is the same op on
// the gradient, without a residual.
#pragma once
#include <cstdint>

#include "../common/cuda_stream.h"
#include "../common/dtype.h"

namespace minigpt {

struct DropoutParams {
  int64_t n;
  DType dtype, out_dtype;  // of x; of residual and out: equal, or one is bf16/f16 and the other f32
  uint32_t threshold;      // p * 2^32: words below it drop
  double scale;            // 1 / (1 - p)
  const int64_t* seed;     // one number, on the kernel's device
  const void* x;           // n elements, contiguous, dtype
  const void* residual;    // likewise, out_dtype; may be null
  void* out;               // likewise, out_dtype
};

void dropout_cpu(const DropoutParams& p);
void dropout_cuda(const DropoutParams& p, CudaStream stream);

}  // namespace minigpt
