#include "../common/dispatch.h"
#include "layer_norm_backward.cuh"

namespace minigpt {
void layer_norm_forward_cuda(const LayerNormForwardParams& p, CudaStream stream) {
  if (p.rows == 0 || p.C == 0) return;
  dispatch_residual(p.dtype, p.residual_dtype, p.weight_dtype, [&](auto type, auto residual_type, auto weight_type) {
    using T = device_t<typename decltype(type)::type>;
    using Residual = device_t<typename decltype(residual_type)::type>;
    using Weight = device_t<typename decltype(weight_type)::type>;
    dispatch_team(p.C, [&](auto team) {
      constexpr int kTeam = decltype(team)::value;
      launch("layer_norm_forward_kernel", layer_norm_forward_kernel<T, Residual, Weight, kTeam>,
             row_grid(p.rows, kTeam), kRowThreads, 0, stream, p);
    });
  });
}

void layer_norm_backward_cuda(const LayerNormBackwardParams& p, CudaStream stream) {
  if (p.C == 0) return;
  const int64_t tiles = column_tiles(p.C);
  dispatch_residual(p.dtype, p.residual_dtype, p.weight_dtype, [&](auto type, auto residual_type, auto weight_type) {
    using T = device_t<typename decltype(type)::type>;
    using Residual = device_t<typename decltype(residual_type)::type>;
    using Weight = device_t<typename decltype(weight_type)::type>;
    if (p.rows > 0) {
      dispatch_team(p.C, [&](auto team) {
        constexpr int kTeam = decltype(team)::value;
        launch("layer_norm_backward_dx_kernel", layer_norm_backward_dx_kernel<T, Residual, Weight, kTeam>,
               row_grid(p.rows, kTeam), kRowThreads, 0, stream, p);
      });
    }
    launch("layer_norm_backward_partial_kernel", layer_norm_backward_partial_kernel<T, Residual>,
           grid_of(p.chunks * tiles), kRowThreads, 0, stream, p);
    launch("layer_norm_backward_finish_kernel", layer_norm_backward_finish_kernel<accumulate_t<T>, Weight>,
           grid_of(tiles * (p.dbias ? 2 : 1)), kRowThreads, 0, stream, p);
  });
}

}  // namespace minigpt
