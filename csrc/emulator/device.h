// The emulated bodies of what common/device.cuh declares for kernels.
#pragma once
#include "cuda.h"

// Shared memory of a block. Every instantiation of a template has its own key, and so its own variable.
#define SHARED(T, name)           \
  static char name##_key;         \
  ::minigpt::same_type<T>& name = \
      *static_cast<::minigpt::same_type<T>*>(::minigpt::emulator::static_shared(&name##_key, sizeof(T), alignof(T)))
#define DYNAMIC_SHARED(name) unsigned char* const name = ::minigpt::emulator::dynamic_shared()

namespace minigpt {

template <class T>
using same_type = T;

template <class V>
EMULATOR_WORK V load_vec(const V* p) {
  emulator::wide_access(p, sizeof(V), alignof(V), false, EMULATOR_CALLER);
  return *p;
}
template <class V>
EMULATOR_WORK void store_vec(V* p, const std::type_identity_t<V>& v) {
  emulator::wide_access(p, sizeof(V), alignof(V), true, EMULATOR_CALLER);
  *p = v;
}

inline float fast_exp2(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem, CudaStream,
            const Args&... args) {
  emulator::run_grid(name, grid, block, smem, false, [&] { kernel(static_cast<Params>(args)...); });
}

// All blocks at once, so that they may wait for each other.
template <class... Params, class... Args>
void launch_cooperative(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem, CudaStream,
                        const Args&... args) {
  emulator::run_grid(name, grid, block, smem, true, [&] { kernel(static_cast<Params>(args)...); });
}

inline void grid_barrier(unsigned*, EMULATOR_HERE) { emulator::meet_grid(where); }

}  // namespace minigpt
