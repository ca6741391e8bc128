// The two forms of GELU and their slopes, for the bodies of simd.h: Form::value<Bytes>(x), Form::slope<Bytes>(x).
#pragma once
#include <cmath>

#include "../common/simd.h"

namespace minigpt::gelu {

template <class V>
ALWAYS_INLINE V clamp(V x, V limit) {
  return x < -limit ? -limit : x > limit ? limit : x;
}

// With u = sqrt(2/pi) (x + 0.044715 x^3) and (1 + tanh u) / 2 = 1 / (1 + e^(-2u)) =: s,
//   gelu = x s        gelu' = s + x s (1 - s) 2 u'
struct Tanh {
  static constexpr double a = 0.79788456080286535588, b = 0.044715;

  // e^(-2u), so that s = 1 / (1 + e^(-2u)) and 1 - s = e^(-2u) s, without cancelling.
  template <int Bytes, class V>
  static ALWAYS_INLINE V odds(V near) {
    using A = std::remove_reference_t<decltype(near[0])>;
    return simd::exp<Bytes>(A(-2 * a) * near * (1 + A(b) * near * near));
  }

  template <int Bytes, class V>
  static ALWAYS_INLINE V value(V x) {
    const V limit = V{} + 9;  // beyond, s is 0 or 1
    return x < -limit ? V{} : x * simd::reciprocal<Bytes>(1 + odds<Bytes>(clamp(x, limit)));
  }

  template <int Bytes, class V>
  static ALWAYS_INLINE V slope(V x) {
    using A = std::remove_reference_t<decltype(x[0])>;
    const V near = clamp(x, V{} + 9), e = odds<Bytes>(near), s = simd::reciprocal<Bytes>(1 + e);
    return s + near * s * (e * s) * A(2 * a) * (1 + A(3 * b) * near * near);
  }
};

// gelu = x Phi(x), gelu' = Phi(x) + x phi(x), with phi(x) = e^(-x^2/2) / sqrt(2 pi).
struct Erf {
  // Phi(x) = 1/2 + x Q(z) for |x| <= 5.25, z = 2 (x / 5.25)^2 - 1 in [-1, 1], with Q a polynomial of degree 13 (minimax,
  // absolute error of Phi 8e-8). Neither an exponential nor a division. Beyond, the value is within 4e-7 of 0 or x.
  template <int Bytes>
  static ALWAYS_INLINE simd::Vector<float, Bytes> value(simd::Vector<float, Bytes> x) {
    using V = simd::Vector<float, Bytes>;
    constexpr float q[] = {-5.657169385813177e-4f, 1.4603513991460204e-3f, -1.3132962631061673e-3f,
                           1.8596744630485773e-3f, -5.133476573973894e-3f, 9.07982885837555e-3f,
                           -1.294784713536501e-2f, 1.8321843817830086e-2f, -2.4996424093842506e-2f,
                           3.2065071165561676e-2f, -3.976849466562271e-2f, 4.964384064078331e-2f,
                           -6.712665408849716e-2f, 1.3465936481952667e-1f};
    const V limit = V{} + 5.25f, near = clamp(x, limit);
    const V z = near * near * 0.07256236f - 1.0f;
    V sum = V{} + q[0];
#pragma GCC unroll 13
    for (int i = 1; i < 14; ++i) sum = sum * z + q[i];
    const V y = x * (0.5f + near * sum);
    return x < -limit ? V{} : x > limit ? x : y;
  }

  // Here the exponential is needed anyway, so Phi comes from it: of a negative x it is erfc(u) / 2 at u = |x| / sqrt 2, of a
  // positive one 1 minus that; erfc(u) = e^(-u^2) R(t), t = 1 / (1 + 0.5625 u), with R a polynomial of degree 8, fitted
  // (minimax, on 0 <= u <= 9.6) to e^(u^2) erfc(u) with a relative error of 8e-8.
  template <int Bytes>
  static ALWAYS_INLINE simd::Vector<float, Bytes> slope(simd::Vector<float, Bytes> x) {
    using V = simd::Vector<float, Bytes>;
    constexpr float r[] = {-7.720848172903061e-2f, 3.964216411113739e-1f,  -7.504803538322449e-1f,
                           5.180996656417847e-1f,  -3.321295976638794e-2f, 3.1922647356987e-1f,
                           3.0909663438796997e-1f, 3.180847465991974e-1f,  -2.7254749511484988e-5f};
    const V near = clamp(x, V{} + 13);  // beyond, Phi is 0 or 1 and phi is 0
    const V u = (near < 0 ? -near : near) * 0.70710678f;
    const V e = simd::exp<Bytes>(-u * u), t = simd::reciprocal<Bytes>(1.0f + 0.5625f * u);
    V sum = V{} + r[0];
#pragma GCC unroll 8
    for (int i = 1; i < 9; ++i) sum = sum * t + r[i];
    const V tail = 0.5f * e * sum;
    return (x < 0 ? tail : 1.0f - tail) + 0.3989422804f * near * e;
  }

  template <int Bytes>
  static ALWAYS_INLINE simd::Vector<double, Bytes> value(simd::Vector<double, Bytes> x) {
    for (int i = 0; i < simd::lanes<double, Bytes>; ++i) {
      const double phi = 0.5 * std::erfc(-x[i] * std::sqrt(0.5));
      x[i] = phi == 0 ? 0 : x[i] * phi;
    }
    return x;
  }

  template <int Bytes>
  static ALWAYS_INLINE simd::Vector<double, Bytes> slope(simd::Vector<double, Bytes> x) {
    for (int i = 0; i < simd::lanes<double, Bytes>; ++i) {
      const double density = 0.39894228040143267794 * std::exp(-0.5 * x[i] * x[i]);
      x[i] = 0.5 * std::erfc(-x[i] * std::sqrt(0.5)) + (density == 0 ? 0 : x[i] * density);
    }
    return x;
  }
};

}  // namespace minigpt::gelu
