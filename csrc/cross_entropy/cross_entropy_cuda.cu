#include "../common/dispatch.h"
#include "cross_entropy.cuh"

namespace minigpt {

void cross_entropy_forward_cuda(const CrossEntropyForwardParams& p, CudaStream stream) {
  dispatch(p.dtype, [&](auto type) {
    using T = device_t<typename decltype(type)::type>;
    using A = accumulate_t<T>;
    launch("cross_entropy_count_kernel", cross_entropy_count_kernel<A>, 1, kRowThreads, 0, stream, p);
    if (p.rows > 0) {
      dispatch_team(p.V, [&](auto team) {
        constexpr int kTeam = decltype(team)::value;
        launch("cross_entropy_rows_kernel", cross_entropy_rows_kernel<T, kTeam>, row_grid(p.rows, kTeam), kRowThreads,
               0, stream, p);
      });
    }
    launch("cross_entropy_mean_kernel", cross_entropy_mean_kernel<A>, 1, kRowThreads, 0, stream, p);
  });
}

void cross_entropy_backward_cuda(const CrossEntropyBackwardParams& p, CudaStream stream) {
  if (p.n == 0) return;
  dispatch(p.dtype, [&](auto type) {
    using T = device_t<typename decltype(type)::type>;
    const int64_t each = kRowThreads * kRowWidth<accumulate_t<T>>;
    launch("cross_entropy_backward_kernel", cross_entropy_backward_kernel<T>, grid_of((p.n + each - 1) / each),
           kRowThreads, 0, stream, p);
  });
}

}  // namespace minigpt
