#include <cmath>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/simd.h"
#include "gelu.h"

namespace minigpt {
namespace {

constexpr int64_t kChunk = 16384;  // elements a task: enough to outweigh handing it out, few enough to share evenly

// A value and, where the backward asks for it, the derivative of GELU there.
template <class V>
struct Gelu {
  V value, slope;
};

// tanh form, with u = sqrt(2/pi) (x + 0.044715 x^3). Since (1 + tanh u) / 2 = 1 / (1 + e^(-2u)) =: s,
//   gelu = x s        gelu' = s + x s (1 - s) 2 u'
template <int Bytes, class V>
ALWAYS_INLINE Gelu<V> gelu_tanh(V x) {
  using A = std::remove_reference_t<decltype(x[0])>;
  constexpr A a = 0.79788456080286535588, b = 0.044715;
  const V left = V{} - 9, near = x < left ? left : x > -left ? -left : x;  // beyond, s is 0 or 1
  const V x2 = near * near;
  const V s = simd::reciprocal<Bytes>(A(1) + simd::exp<Bytes>(-2 * a * near * (1 + b * x2)));
  return {x < left ? V{} : x * s, s + near * s * (1 - s) * (2 * a) * (1 + 3 * b * x2)};
}

// erf form: gelu = x Phi(x), gelu' = Phi(x) + x phi(x), with phi(x) = e^(-x^2/2) / sqrt(2 pi).
// Phi of a negative x is erfc(u) / 2 at u = |x| / sqrt 2, of a positive one 1 minus that: no cancellation in the tail.
// erfc(u) = e^(-u^2) R(t), t = 1 / (1 + 0.5625 u): one exponential serves Phi and phi. R is a polynomial of degree 8,
// fitted (minimax, on 0 <= u <= 9.6) to e^(u^2) erfc(u) with a relative error of 8e-8.
template <int Bytes>
ALWAYS_INLINE Gelu<simd::Vector<float, Bytes>> gelu_erf(simd::Vector<float, Bytes> x) {
  using V = simd::Vector<float, Bytes>;
  const V left = V{} - 13, near = x < left ? left : x > -left ? -left : x;  // beyond, Phi is 0 or 1 and phi is 0
  const V u = (near < 0 ? -near : near) * 0.70710678f;
  const V e = simd::exp<Bytes>(-u * u);
  const V t = simd::reciprocal<Bytes>(1.0f + 0.5625f * u);
  V r = t * -0.07720848172903061f + 0.3964216411113739f;
  r = r * t + -0.7504803538322449f;
  r = r * t + 0.5180996656417847f;
  r = r * t + -0.03321295976638794f;
  r = r * t + 0.31922647356987f;
  r = r * t + 0.30909663438796997f;
  r = r * t + 0.3180847465991974f;
  r = r * t + -2.7254749511484988e-05f;
  const V tail = 0.5f * e * r;
  const V phi = x < 0 ? tail : 1.0f - tail;
  return {x < left ? V{} : x * phi, phi + 0.3989422804f * near * e};
}

template <int Bytes>
ALWAYS_INLINE Gelu<simd::Vector<double, Bytes>> gelu_erf(simd::Vector<double, Bytes> x) {
  Gelu<simd::Vector<double, Bytes>> y;
  for (int i = 0; i < simd::lanes<double, Bytes>; ++i) {
    const double phi = 0.5 * std::erfc(-x[i] * 0.70710678118654752440);
    y.value[i] = x[i] * phi;
    y.slope[i] = phi + x[i] * std::exp(-0.5 * x[i] * x[i]) * 0.39894228040143267794;
  }
  return y;
}

template <int Bytes, bool Tanh, class V>
ALWAYS_INLINE Gelu<V> gelu(V x) {
  if constexpr (Tanh) {
    return gelu_tanh<Bytes>(x);
  } else {
    return gelu_erf<Bytes>(x);
  }
}

template <class T, bool Tanh>
struct Forward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const T* x, T* y, int64_t n) {
    constexpr int W = simd::lanes<accumulate_t<T>, Bytes>;
    for (int64_t i = 0; i < n; i += W)
      simd::store_part<Bytes>(y + i, gelu<Bytes, Tanh>(simd::load_part<Bytes>(x + i, n - i)).value, n - i);
  }
};

template <class T, bool Tanh>
struct Backward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const T* dy, const T* x, T* dx, int64_t n) {
    constexpr int W = simd::lanes<accumulate_t<T>, Bytes>;
    for (int64_t i = 0; i < n; i += W) {
      const auto slope = gelu<Bytes, Tanh>(simd::load_part<Bytes>(x + i, n - i)).slope;
      simd::store_part<Bytes>(dx + i, simd::load_part<Bytes>(dy + i, n - i) * slope, n - i);
    }
  }
};

}  // namespace

void gelu_forward_cpu(const GeluForwardParams& p) {
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto kernel = p.tanh ? simd::call<Forward<T, true>, const T*, T*, int64_t>
                               : simd::call<Forward<T, false>, const T*, T*, int64_t>;
    parallel_ranges(p.n, kChunk, [&](int64_t begin, int64_t end) {
      kernel(static_cast<const T*>(p.x) + begin, static_cast<T*>(p.y) + begin, end - begin);
    });
  });
}

void gelu_backward_cpu(const GeluBackwardParams& p) {
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto kernel = p.tanh ? simd::call<Backward<T, true>, const T*, const T*, T*, int64_t>
                               : simd::call<Backward<T, false>, const T*, const T*, T*, int64_t>;
    parallel_ranges(p.n, kChunk, [&](int64_t begin, int64_t end) {
      kernel(static_cast<const T*>(p.dy) + begin, static_cast<const T*>(p.x) + begin, static_cast<T*>(p.dx) + begin,
             end - begin);
    });
  });
}

}  // namespace minigpt
