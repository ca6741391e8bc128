#include "../common/dispatch.h"
#include "rope.cuh"

namespace minigpt {

void rope_cuda(const RopeParams& p, CudaStream stream) {
  if (p.B * p.T * p.H * p.D == 0) return;
  dispatch(p.dtype, [&](auto type) {
    using T = device_t<typename decltype(type)::type>;
    // Two kernels by name, so that a profile tells forward and backward apart.
    const char* const name = p.inverse ? "rope_backward_kernel" : "rope_forward_kernel";
    const auto kernel = p.inverse ? rope_backward_kernel<T> : rope_forward_kernel<T>;
    launch(name, kernel, grid_of(p.B * p.T), kRopeThreads, 0, stream, p);
  });
}

}  // namespace minigpt
