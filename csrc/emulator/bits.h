// 16-bit floats as the tensor cores read them: exact, no instruction or library for halves needed.
#pragma once
#include <cstdint>

namespace minigpt::emulator {

inline float float_of_bfloat16(uint16_t bits) { return __builtin_bit_cast(float, uint32_t(bits) << 16); }

// A half's exponent and mantissa lie 13 bits lower than a float's, and its exponent begins 112 lower; the product mends
// that, for numbers below the normal ones too.
inline float float_of_half(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = uint32_t(bits & 0x7fff) << 13;
  const bool infinite_or_nan = (bits & 0x7c00) == 0x7c00;
  const float magnitude =
      infinite_or_nan ? __builtin_bit_cast(float, rest | 0x7f800000) : __builtin_bit_cast(float, rest) * 0x1p112f;
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, magnitude) | sign);
}

}  // namespace minigpt::emulator
