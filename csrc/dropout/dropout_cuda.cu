#include "../common/dispatch.h"
#include "dropout.cuh"

namespace minigpt {

void dropout_cuda(const DropoutParams& p, CudaStream stream) {
  if (p.n == 0) return;
  // A thread for every four elements, up to far more threads than any GPU holds at a time; from there on they go round.
  constexpr int64_t each = kDropoutThreads * kDropoutWidth, most = 65536;
  const int64_t blocks = (p.n + each - 1) / each;
  dispatch_mixed(p.dtype, p.out_dtype, [&](auto type, auto out_type) {
    using T = device_t<typename decltype(type)::type>;
    using Out = device_t<typename decltype(out_type)::type>;
    launch("dropout_kernel", dropout_kernel<T, Out>, grid_of(blocks < most ? blocks : most), kDropoutThreads, 0, stream,
           p);
  });
}

}  // namespace minigpt
