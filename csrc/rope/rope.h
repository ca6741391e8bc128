// Rotary position embedding (RoPE; Su et al., 2021): what a kernel is handed. No torch in here.
// Of each head the first R dimensions are rotated, dimension i together with i + R/2 (the half-split form of GPT-NeoX and
// Llama), by the angle of the token's position p; the others pass through.
//   y[i] = x[i] cos[p][i] - x[i + R/2] sin[p][i]     y[i + R/2] = x[i + R/2] cos[p][i] + x[i] sin[p][i]     0 <= i < R/2
// The gradient of x is dy rotated back: the same with -sin.
#pragma once
#include <cstdint>

#include "../common/cuda_stream.h"
#include "../common/dtype.h"

namespace minigpt {

struct RopeParams {
  int64_t B, T, H, D;
  int64_t half, n_positions;  // half = R/2, with R <= D
  DType dtype;
  bool inverse;
  const void* x;                                    // (B, T, H, D); D is contiguous
  int64_t batch_stride, token_stride, head_stride;  // of x, in elements
  const void *cos, *sin;                            // (n_positions, half), contiguous; float (double for f64)
  const int32_t* positions;                         // (B, T), contiguous; null: token t of each sequence is at t
  void* y;                                          // (B, T, H, D), contiguous
};

void rope_cpu(const RopeParams& p);
void rope_cuda(const RopeParams& p, CudaStream stream);

}  // namespace minigpt
