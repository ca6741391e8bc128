#include "../common/dispatch.h"
#include "gelu.cuh"

namespace minigpt {
namespace {

// A thread for every 16 bytes, up to far more threads than any GPU holds at a time; from there on they go round.
template <class T>
dim3 gelu_grid(int64_t n) {
  constexpr int64_t each = kGeluThreads * kGeluWidth<T>, most = 65536;
  const int64_t blocks = (n + each - 1) / each;
  return grid_of(blocks < most ? blocks : most);
}

}  // namespace

void gelu_forward_cuda(const GeluForwardParams& p, CudaStream stream) {
  if (p.n == 0) return;
  dispatch(p.dtype, [&](auto type) {
    using T = device_t<typename decltype(type)::type>;
    const auto kernel = p.tanh ? gelu_forward_kernel<T, true> : gelu_forward_kernel<T, false>;
    launch("gelu_forward_kernel", kernel, gelu_grid<T>(p.n), kGeluThreads, 0, stream, p);
  });
}

void gelu_backward_cuda(const GeluBackwardParams& p, CudaStream stream) {
  if (p.n == 0) return;
  dispatch(p.dtype, [&](auto type) {
    using T = device_t<typename decltype(type)::type>;
    const auto kernel = p.tanh ? gelu_backward_kernel<T, true> : gelu_backward_kernel<T, false>;
    launch("gelu_backward_kernel", kernel, gelu_grid<T>(p.n), kGeluThreads, 0, stream, p);
  });
}

void bias_gelu_forward_cuda(const BiasGeluForwardParams& p, CudaStream stream) {
  if (p.rows == 0 || p.C == 0) return;
  dispatch_pair(p.dtype, p.bias_dtype, [&](auto type, auto bias_type) {
    using T = device_t<typename decltype(type)::type>;
    using Bias = device_t<typename decltype(bias_type)::type>;
    constexpr int64_t W = kGeluWidth<T>;
    const auto kernel = p.tanh ? bias_gelu_forward_kernel<T, Bias, true> : bias_gelu_forward_kernel<T, Bias, false>;
    launch("bias_gelu_forward_kernel", kernel, gelu_grid<T>(p.rows * ((p.C + W - 1) / W * W)), kGeluThreads, 0, stream,
           p);
  });
}

void bias_gelu_backward_cuda(const BiasGeluBackwardParams& p, CudaStream stream) {
  if (p.C == 0) return;
  const int64_t tiles = column_tiles(p.C);
  dispatch_pair(p.dtype, p.bias_dtype, [&](auto type, auto bias_type) {
    using T = device_t<typename decltype(type)::type>;
    using Bias = device_t<typename decltype(bias_type)::type>;
    const auto kernel = p.tanh ? bias_gelu_backward_kernel<T, Bias, true> : bias_gelu_backward_kernel<T, Bias, false>;
    launch("bias_gelu_backward_kernel", kernel, grid_of(p.chunks * tiles), kRowThreads, 0, stream, p);
    launch("bias_gelu_backward_finish_kernel", bias_gelu_backward_finish_kernel<accumulate_t<T>, Bias>, grid_of(tiles),
           kRowThreads, 0, stream, p);
  });
}

}  // namespace minigpt
