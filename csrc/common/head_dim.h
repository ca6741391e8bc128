// From a head dimension known at run time to one known to the compiler.
#pragma once
#include <cstdint>
#include <type_traits>

namespace minigpt {

// Calls f with the smallest size that a CUDA kernel is compiled for and that holds D <= 256, as an integral_constant.
// Double is for checking gradients, not for speed: two sizes do.
template <class T, class F>
void dispatch_head_dim(int64_t D, const F& f) {
  if constexpr (sizeof(T) < 8) {
    if (D <= 32) return f(std::integral_constant<int, 32>{});
    if (D > 64 && D <= 128) return f(std::integral_constant<int, 128>{});
  }
  if (D <= 64) return f(std::integral_constant<int, 64>{});
  f(std::integral_constant<int, 256>{});
}

}  // namespace minigpt
