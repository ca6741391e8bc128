// The logarithm and e^x - 1 that a row's loss and its target's gradient want, for the bodies of simd.h.
#pragma once
#include <cmath>

#include "../common/simd.h"

namespace minigpt::cross_entropy {

// Of x at least FLT_MIN; NaN where x is 0 or NaN. x = 2^k (1 + f) with f from sqrt(1/2) - 1 to sqrt(2) - 1, and
// log(1 + f) = f + f^2 P(f), P a polynomial of degree 7 (minimax, relative error 3e-8).
template <int Bytes>
ALWAYS_INLINE simd::Vector<float, Bytes> log(simd::Vector<float, Bytes> x) {
  using V = simd::Vector<float, Bytes>;
  using Integers = simd::Vector<int32_t, Bytes>;
  const Integers k = ((Integers)x - 0x3f3504f3) >> 23;  // the bits of sqrt(1/2)
  const V f = (V)((Integers)x - (k << 23)) - 1.0f, n = __builtin_convertvector(k, V);
  V p = f * 0.08734846f - 0.14307527f;
  p = p * f + 0.14917974f;
  p = p * f - 0.16570507f;
  p = p * f + 0.19962072f;
  p = p * f - 0.25001755f;
  p = p * f + 0.3333395f;
  p = p * f - 0.4999999f;
  const V y = n * 0.693145752f + (f + (f * f * p + n * 1.42860677e-6f));  // ln 2 in two parts
  return x > 0 ? y : V{} + __builtin_nanf("");
}

// Of x <= 0; NaN where x is. x = n ln 2 + r as in simd::exp, e^r - 1 = r + r^2 P(r), P of degree 4 (minimax, relative
// error 1.3e-8).
template <int Bytes>
ALWAYS_INLINE simd::Vector<float, Bytes> expm1(simd::Vector<float, Bytes> x) {
  using V = simd::Vector<float, Bytes>;
  x = x < -60.0f ? V{} - 60.0f : x;  // where it is -1
  const V shifted = x * 1.44269504f + 12582912.0f;
  const V n = shifted - 12582912.0f;
  const V r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  V p = r * 0.001388251f + 0.00836658f;
  p = p * r + 0.0416672f;
  p = p * r + 0.16666543f;
  p = p * r + 0.49999997f;
  const V power = (V)(((simd::Words<Bytes>)shifted + 127) << 23);
  return power * (r * r * p + r) + (power - 1.0f);
}

template <int Bytes>
ALWAYS_INLINE simd::Vector<double, Bytes> log(simd::Vector<double, Bytes> x) {
  for (int i = 0; i < simd::lanes<double, Bytes>; ++i) x[i] = std::log(x[i]);
  return x;
}

template <int Bytes>
ALWAYS_INLINE simd::Vector<double, Bytes> expm1(simd::Vector<double, Bytes> x) {
  for (int i = 0; i < simd::lanes<double, Bytes>; ++i) x[i] = std::expm1(x[i]);
  return x;
}

}  // namespace minigpt::cross_entropy
