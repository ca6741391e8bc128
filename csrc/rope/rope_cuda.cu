#include "../common/dispatch.h"
#include "rope.cuh"

namespace minigpt {

void rope_cuda(const RopeParams& p, CudaStream stream) {
  if (p.B * p.T * p.H * p.D == 0) return;
  dispatch(p.dtype, [&](auto type) {
    using T = device_t<typename decltype(type)::type>;
    launch("rope_kernel", rope_kernel<T>, grid_of(p.B * p.T), kRopeThreads, 0, stream, p);
  });
}

}  // namespace minigpt
