#include "../common/dispatch.h"
#include "rms_norm_backward.cuh"

namespace minigpt {
namespace {

constexpr int64_t kHalfWarpRow = 64;  // heads that are normed: 4 elements a lane

template <class F>
void dispatch_rms_norm_team(int64_t C, const F& f) {
  C <= kHalfWarpRow ? f(std::integral_constant<int, 16>{}) : dispatch_team(C, f);
}

}  // namespace

void rms_norm_forward_cuda(const RmsNormForwardParams& p, CudaStream stream) {
  if (p.rows == 0 || p.C == 0) return;
  dispatch_residual(p.dtype, p.residual_dtype, p.weight_dtype, [&](auto type, auto residual_type, auto weight_type) {
    using T = device_t<typename decltype(type)::type>;
    using Residual = device_t<typename decltype(residual_type)::type>;
    using Weight = device_t<typename decltype(weight_type)::type>;
    dispatch_rms_norm_team(p.C, [&](auto team) {
      constexpr int kTeam = decltype(team)::value;
      launch("rms_norm_forward_kernel", rms_norm_forward_kernel<T, Residual, Weight, kTeam>, row_grid(p.rows, kTeam),
             kRowThreads, 0, stream, p);
    });
  });
}

void rms_norm_backward_cuda(const RmsNormBackwardParams& p, CudaStream stream) {
  if (p.C == 0) return;
  const int64_t tiles = column_tiles(p.C);
  dispatch_residual(p.dtype, p.residual_dtype, p.weight_dtype, [&](auto type, auto residual_type, auto weight_type) {
    using T = device_t<typename decltype(type)::type>;
    using Residual = device_t<typename decltype(residual_type)::type>;
    using Weight = device_t<typename decltype(weight_type)::type>;
    if (p.rows > 0) {
      dispatch_rms_norm_team(p.C, [&](auto team) {
        constexpr int kTeam = decltype(team)::value;
        launch("rms_norm_backward_dx_kernel", rms_norm_backward_dx_kernel<T, Residual, Weight, kTeam>,
               row_grid(p.rows, kTeam), kRowThreads, 0, stream, p);
      });
    }
    launch("rms_norm_backward_partial_kernel", rms_norm_backward_partial_kernel<T, Residual>, grid_of(p.chunks * tiles),
           kRowThreads, 0, stream, p);
    launch("rms_norm_backward_finish_kernel", rms_norm_backward_finish_kernel<accumulate_t<T>, Weight>, grid_of(tiles),
           kRowThreads, 0, stream, p);
  });
}

}  // namespace minigpt
