#include "../common/dispatch.h"
#include "relu_squared.cuh"

namespace minigpt {
namespace {

// A thread for every 16 bytes, up to far more threads than any GPU holds at a time; from there on they go round.
template <class T>
dim3 relu_squared_grid(int64_t n) {
  constexpr int64_t each = kReluSquaredThreads * kReluSquaredWidth<T>, most = 65536;
  const int64_t blocks = (n + each - 1) / each;
  return grid_of(blocks < most ? blocks : most);
}

}  // namespace

void relu_squared_forward_cuda(const ReluSquaredForwardParams& p, CudaStream stream) {
  if (p.n == 0) return;
  dispatch(p.dtype, [&](auto type) {
    using T = device_t<typename decltype(type)::type>;
    launch("relu_squared_forward_kernel", relu_squared_forward_kernel<T>, relu_squared_grid<T>(p.n),
           kReluSquaredThreads, 0, stream, p);
  });
}

void relu_squared_backward_cuda(const ReluSquaredBackwardParams& p, CudaStream stream) {
  if (p.n == 0) return;
  dispatch(p.dtype, [&](auto type) {
    using T = device_t<typename decltype(type)::type>;
    launch("relu_squared_backward_kernel", relu_squared_backward_kernel<T>, relu_squared_grid<T>(p.n),
           kReluSquaredThreads, 0, stream, p);
  });
}

}  // namespace minigpt
