// Element types that kernels know, and the 16-bit ones as the CPU stores them. No torch in here.
#pragma once
#include <cstdint>

namespace minigpt {

enum class DType { f32, bf16, f16, f64 };

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

// What sums are kept in: float for every type that is stored in 32 bits or fewer, double for double.
template <class T>
struct accumulate {
  using type = float;
};
template <>
struct accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename accumulate<T>::type;

}  // namespace minigpt
