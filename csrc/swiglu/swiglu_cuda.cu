#include "../common/dispatch.h"
#include "swiglu.cuh"

namespace minigpt {
namespace {

struct SwigluShape {
  dim3 grid, block;
};

// Threads for all of a row where they are few enough, in whole warps, and then as many rows a block as it has room for.
template <class T>
SwigluShape swiglu_shape(int64_t rows, int64_t F) {
  const int64_t needed = (F + kSwigluWidth<T> - 1) / kSwigluWidth<T>, warps = (needed + 31) / 32;
  const int64_t x = 32 * warps < kSwigluThreads ? 32 * warps : kSwigluThreads, y = kSwigluThreads / x;
  const int64_t tiles = (needed + x - 1) / x;
  return {grid_of((rows + y - 1) / y * tiles), dim3(unsigned(x), unsigned(y))};
}

}  // namespace

void swiglu_forward_cuda(const SwigluForwardParams& p, CudaStream stream) {
  if (p.rows == 0 || p.F == 0) return;
  dispatch(p.dtype, [&](auto type) {
    using T = device_t<typename decltype(type)::type>;
    const SwigluShape shape = swiglu_shape<T>(p.rows, p.F);
    launch("swiglu_forward_kernel", swiglu_forward_kernel<T>, shape.grid, shape.block, 0, stream, p);
  });
}

void swiglu_backward_cuda(const SwigluBackwardParams& p, CudaStream stream) {
  if (p.rows == 0 || p.F == 0) return;
  dispatch(p.dtype, [&](auto type) {
    using T = device_t<typename decltype(type)::type>;
    const SwigluShape shape = swiglu_shape<T>(p.rows, p.F);
    launch("swiglu_backward_kernel", swiglu_backward_kernel<T>, shape.grid, shape.block, 0, stream, p);
  });
}

}  // namespace minigpt
