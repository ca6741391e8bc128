#include "../common/dispatch.h"
#include "layer_norm_backward.cuh"

namespace minigpt {
namespace {

constexpr int64_t kWarpRow = 1024;  // a row up to this long is a warp's: 8 rounds of 4 elements a lane, and no barrier

template <class F>
void dispatch_team(int64_t C, const F& f) {
  C <= kWarpRow ? f(std::integral_constant<int, 32>{}) : f(std::integral_constant<int, kLayerNormThreads>{});
}

dim3 row_grid(int64_t rows, int team) {
  const int64_t each = kLayerNormThreads / team;
  return grid_of((rows + each - 1) / each);
}

}  // namespace

void layer_norm_forward_cuda(const LayerNormForwardParams& p, CudaStream stream) {
  if (p.rows == 0 || p.C == 0) return;
  dispatch_pair(p.dtype, p.weight_dtype, [&](auto type, auto weight_type) {
    using T = device_t<typename decltype(type)::type>;
    using Weight = device_t<typename decltype(weight_type)::type>;
    dispatch_team(p.C, [&](auto team) {
      constexpr int kTeam = decltype(team)::value;
      launch("layer_norm_forward_kernel", layer_norm_forward_kernel<T, Weight, kTeam>, row_grid(p.rows, kTeam),
             kLayerNormThreads, 0, stream, p);
    });
  });
}

void layer_norm_backward_cuda(const LayerNormBackwardParams& p, CudaStream stream) {
  if (p.C == 0) return;
  const int64_t column_tiles = (p.C + kColumns - 1) / kColumns;
  dispatch_pair(p.dtype, p.weight_dtype, [&](auto type, auto weight_type) {
    using T = device_t<typename decltype(type)::type>;
    using Weight = device_t<typename decltype(weight_type)::type>;
    if (p.rows > 0) {
      dispatch_team(p.C, [&](auto team) {
        constexpr int kTeam = decltype(team)::value;
        launch("layer_norm_backward_dx_kernel", layer_norm_backward_dx_kernel<T, Weight, kTeam>,
               row_grid(p.rows, kTeam), kLayerNormThreads, 0, stream, p);
      });
    }
    launch("layer_norm_backward_partial_kernel", layer_norm_backward_partial_kernel<T>,
           grid_of(p.chunks * column_tiles), kLayerNormThreads, 0, stream, p);
    launch("layer_norm_backward_finish_kernel", layer_norm_backward_finish_kernel<accumulate_t<T>, Weight>,
           grid_of(column_tiles * (p.dbias ? 2 : 1)), kLayerNormThreads, 0, stream, p);
  });
}

}  // namespace minigpt
