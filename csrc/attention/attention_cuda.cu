#include "../common/dispatch.h"
#include "../common/head_dim.h"
#include "attention_backward.cuh"
#include "attention_forward.cuh"

namespace minigpt {
namespace {

template <class L>
dim3 tile_grid(int64_t heads, int64_t rows) {
  return grid_of(heads * ((rows + L::R - 1) / L::R));
}

}  // namespace

void attention_forward_cuda(const AttentionForwardParams& p, CudaStream stream) {
  const AttentionShape& s = p.shape;
  if (s.B * s.H * s.T == 0) return;
  dispatch(p.dtype, [&](auto type) {
    using T = device_t<typename decltype(type)::type>;
    dispatch_head_dim<T>(s.D, [&](auto head_dim) {
      constexpr int D = decltype(head_dim)::value;
      using L = ForwardTiling<T, D>;
      dispatch_rule(p.rule, [&](auto rule) {
        launch("attention_forward_kernel", attention_forward_kernel<T, D, rule.value>, tile_grid<L>(s.B * s.H, s.T),
               L::threads, L::smem, stream, p);
      });
    });
  });
}

void attention_backward_cuda(const AttentionBackwardParams& p, CudaStream stream) {
  const AttentionShape& s = p.shape;
  const int64_t query_rows = s.B * s.T * s.H, key_rows = s.B * s.S * s.H_kv;
  dispatch(p.dtype, [&](auto type) {
    using T = device_t<typename decltype(type)::type>;
    if (query_rows > 0) {
      constexpr int64_t each = kDeltaThreads / 32;
      launch("attention_backward_delta_kernel", attention_backward_delta_kernel<T>,
             grid_of((query_rows + each - 1) / each), kDeltaThreads, 0, stream, p);
    }
    dispatch_head_dim<T>(s.D, [&](auto head_dim) {
      constexpr int D = decltype(head_dim)::value;
      using L = BackwardTiling<T, D>;
      dispatch_rule(p.rule, [&](auto rule) {
        if (key_rows > 0)
          launch("attention_backward_dk_dv_kernel", attention_backward_dk_dv_kernel<T, D, rule.value>,
                 tile_grid<L>(s.B * s.H_kv, s.S), L::threads, L::smem, stream, p);
        if (query_rows > 0)
          launch("attention_backward_dq_kernel", attention_backward_dq_kernel<T, D, rule.value>,
                 tile_grid<L>(s.B * s.H, s.T), L::threads, L::smem, stream, p);
      });
    });
  });
}

}  // namespace minigpt
