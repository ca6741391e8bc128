// SIMD on GCC/clang vector types. A kernel is written once, over vectors of `Bytes` bytes, and compiled for each
// instruction set; which one runs is decided at run time, so that the module can be carried to another machine.
//
//   template <class T> struct Scale {                        // a body: everything it calls is ALWAYS_INLINE
//     template <int Bytes> static ALWAYS_INLINE void run(const T* x, T* y, int64_t n) { ... }
//   };
//   simd::call<Scale<float>>(x, y, n);
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtype.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))
#ifdef __x86_64__
#define TARGET_AVX2 __attribute__((target("arch=x86-64-v3")))
#define TARGET_AVX512 __attribute__((target("arch=x86-64-v4")))
#if !defined(__clang__)  // clang wants a builtin's instruction set named in the very function that has it: see dots.h
#define MINIGPT_DOTS 1
#define TARGET_AVX2_VNNI __attribute__((target("arch=x86-64-v3,avxvnni")))
#define TARGET_AVX512_BF16 __attribute__((target("arch=x86-64-v4,avx512vnni,avx512bf16")))
#endif
#endif

namespace minigpt::simd {

// ---- which instruction set ----------------------------------------------------------------------------------------

// avx2_vnni: with 8-bit dot products (AVX-VNNI); avx512_bf16: with 8-bit (AVX512-VNNI) and bf16 ones (AVX512-BF16).
enum class Level { portable, avx2, avx2_vnni, avx512, avx512_bf16 };

// The best level this CPU has; MINIGPT_SIMD, set to one of their names, asks for a lower one. Fixed at the first call.
Level level();
const char* level_name();
bool level_supported(Level wanted);

template <class Body, class... Args>
void run_portable(Args... args) {
  Body::template run<16>(args...);
}
#ifdef __x86_64__
template <class Body, class... Args>
TARGET_AVX2 void run_avx2(Args... args) {
  Body::template run<32>(args...);
}
template <class Body, class... Args>
TARGET_AVX512 void run_avx512(Args... args) {
  Body::template run<64>(args...);
}
#endif

// Arguments are passed by value: hand over pointers and small structs.
template <class Body, class... Args>
void call(Args... args) {
  switch (level()) {
#ifdef __x86_64__
    case Level::avx512_bf16:
    case Level::avx512:
      return run_avx512<Body>(args...);
    case Level::avx2_vnni:
    case Level::avx2:
      return run_avx2<Body>(args...);
#endif
    default:
      return run_portable<Body>(args...);
  }
}

// From inside a body: another body, compiled for the same instruction set, as a function of its own.
template <class Body, int Bytes, class... Args>
ALWAYS_INLINE void call_from(Args... args) {
#ifdef __x86_64__
  if constexpr (Bytes == 64) return run_avx512<Body>(args...);
  if constexpr (Bytes == 32) return run_avx2<Body>(args...);
#endif
  if constexpr (Bytes == 16) run_portable<Body>(args...);
}

// ---- vectors ------------------------------------------------------------------------------------------------------

template <class A, int Bytes>
struct VectorType {
  typedef A type __attribute__((vector_size(Bytes), aligned(alignof(A)), may_alias));
};
template <class A, int Bytes>
using Vector = typename VectorType<A, Bytes>::type;

template <class A, int Bytes>
constexpr int lanes = Bytes / int(sizeof(A));

// A vector of W 16-bit or 32-bit integers beside a float vector of Bytes = 4 W bytes.
template <int Bytes>
using Words = Vector<uint32_t, Bytes>;
template <int Bytes>
using Halves = Vector<uint16_t, Bytes / 2>;
template <int Bytes>
using Quarters = Vector<int8_t, Bytes / 4>;

template <int Bytes>
ALWAYS_INLINE Vector<float, Bytes> select(Vector<int32_t, Bytes> mask, Vector<float, Bytes> a, Vector<float, Bytes> b) {
  return mask ? a : b;
}

// ---- 16-bit floats <-> float, by integer arithmetic on the bit patterns --------------------------------------------

template <int Bytes>
ALWAYS_INLINE Words<Bytes> zero_extend(Halves<Bytes> h) {
  Words<Bytes> words;
#ifdef __x86_64__  // one instruction, for which gcc 12 writes four
  if constexpr (Bytes == 64) {
    asm("vpmovzxwd %1, %0" : "=v"(words) : "vm"(h));
    return words;
  } else if constexpr (Bytes == 32) {
    asm("vpmovzxwd %1, %0" : "=x"(words) : "xm"(h));
    return words;
  }
#endif
  return __builtin_convertvector(h, Words<Bytes>);
}

template <int Bytes>
ALWAYS_INLINE Vector<float, Bytes> widen(Halves<Bytes> h, bfloat16) {
  return (Vector<float, Bytes>)(zero_extend<Bytes>(h) << 16);
}

template <int Bytes>
ALWAYS_INLINE Halves<Bytes> narrow(Vector<float, Bytes> x, bfloat16) {
  const Words<Bytes> u = (Words<Bytes>)x;
  const Words<Bytes> rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, ties to even
  const Words<Bytes> nan = (u >> 16) | 0x40;                          // rounding could carry a NaN over into infinity
  return __builtin_convertvector((Words<Bytes>)(x == x ? rounded : nan), Halves<Bytes>);
}

template <int Bytes>
ALWAYS_INLINE Vector<float, Bytes> widen(Halves<Bytes> h, float16) {
  const Words<Bytes> u = zero_extend<Bytes>(h);
  // The exponent is moved by a multiplication, which also normalises subnormal numbers.
  const Words<Bytes> magnitude = (Words<Bytes>)((Vector<float, Bytes>)((u & 0x7fff) << 13) * 0x1p112f);
  const Words<Bytes> special = ((u & 0x7fff) << 13) | 0x7f800000;
  return (Vector<float, Bytes>)(((u & 0x7c00) == 0x7c00 ? special : magnitude) | ((u & 0x8000) << 16));
}

template <int Bytes>
ALWAYS_INLINE Halves<Bytes> narrow(Vector<float, Bytes> x, float16) {
  using V = Vector<float, Bytes>;
  using U = Words<Bytes>;
  const U sign = (U)x & 0x80000000u, magnitude = (U)x ^ sign;
  const U normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const U subnormal = (U)((V)magnitude + 0.5f) - 0x3f000000u;  // the addition aligns and rounds the significand
  const U big = magnitude > 0x7f800000u ? (U{} + 0x7e00u) : (U{} + 0x7c00u);
  const U finite = magnitude < (113u << 23) ? subnormal : normal;
  return __builtin_convertvector((U)(magnitude >= (143u << 23) ? big : finite) | (sign >> 16), Halves<Bytes>);
}

template <int Bytes>
ALWAYS_INLINE Vector<float, Bytes> widen(Quarters<Bytes> q) {
  Vector<int32_t, Bytes> words;
#ifdef __x86_64__  // as in zero_extend
  if constexpr (Bytes == 64) {
    asm("vpmovsxbd %1, %0" : "=v"(words) : "vm"(q));
    return __builtin_convertvector(words, Vector<float, Bytes>);
  } else if constexpr (Bytes == 32) {
    asm("vpmovsxbd %1, %0" : "=x"(words) : "xm"(q));
    return __builtin_convertvector(words, Vector<float, Bytes>);
  }
#endif
  words = __builtin_convertvector(q, Vector<int32_t, Bytes>);
  return __builtin_convertvector(words, Vector<float, Bytes>);
}

// ---- loads and stores: T in memory, its accumulation type in registers ---------------------------------------------

template <int Bytes, class T>
ALWAYS_INLINE Vector<accumulate_t<T>, Bytes> load(const T* p) {
  if constexpr (sizeof(T) == 2) {
    Halves<Bytes> h;
    memcpy(&h, p, sizeof h);
    return widen<Bytes>(h, T{});
  } else if constexpr (sizeof(T) == 1) {
    Quarters<Bytes> q;
    memcpy(&q, p, sizeof q);
    return widen<Bytes>(q);
  } else {
    return *(const Vector<T, Bytes>*)p;
  }
}

template <int Bytes, class T>
ALWAYS_INLINE void store(T* p, Vector<accumulate_t<T>, Bytes> v) {
  if constexpr (sizeof(T) == 2) {
    const Halves<Bytes> h = narrow<Bytes>(v, T{});
    memcpy(p, &h, sizeof h);
  } else {
    *(Vector<T, Bytes>*)p = v;
  }
}

// The same where only n elements are left: with n < lanes, the other lanes read as zero and are not written.
template <int Bytes, class T>
ALWAYS_INLINE Vector<accumulate_t<T>, Bytes> load_part(const T* p, int64_t n) {
  if (n >= lanes<accumulate_t<T>, Bytes>) return load<Bytes>(p);
  T buffer[lanes<accumulate_t<T>, Bytes>] = {};
  memcpy(buffer, p, n * sizeof(T));
  return load<Bytes>(buffer);
}

template <int Bytes, class T>
ALWAYS_INLINE void store_part(T* p, Vector<accumulate_t<T>, Bytes> v, int64_t n) {
  if (n >= lanes<accumulate_t<T>, Bytes>) return store<Bytes>(p, v);
  T buffer[lanes<accumulate_t<T>, Bytes>];
  store<Bytes>(buffer, v);
  memcpy(p, buffer, n * sizeof(T));
}

// A row of n elements, vector by vector: f(i, Whole{}) for each that is whole, and f(i, elements left) for what is behind
// them. load_part, store_part and keep_first take either, and the loop that counts has no case in it.
struct Whole {};

template <int Bytes, class T>
ALWAYS_INLINE Vector<accumulate_t<T>, Bytes> load_part(const T* p, Whole) {
  return load<Bytes>(p);
}

template <int Bytes, class T>
ALWAYS_INLINE void store_part(T* p, Vector<accumulate_t<T>, Bytes> v, Whole) {
  store<Bytes>(p, v);
}

template <int Bytes, class V>
ALWAYS_INLINE V keep_first(V v, Whole) {
  return v;
}

template <class A, int Bytes, class F>
ALWAYS_INLINE void each_vector(int64_t n, const F& f) {
  constexpr int W = lanes<A, Bytes>;
  int64_t i = 0;
  for (; i + W <= n; i += W) f(i, Whole{});
  if (i < n) f(i, n - i);
}

template <class T>
ALWAYS_INLINE accumulate_t<T> load_one(const T* p) {
  return load_part<16>(p, 1)[0];
}

// v in the first n lanes, zero behind, whatever stood there.
template <int Bytes, class V>
ALWAYS_INLINE V keep_first(V v, int64_t n) {
  V lane;
  for (int i = 0; i < int(sizeof(V) / sizeof(v[0])); ++i) lane[i] = i;
  const std::remove_reference_t<decltype(v[0])> end = n;
  return lane < end ? v : V{};
}

// ---- arithmetic ---------------------------------------------------------------------------------------------------

template <class V>
ALWAYS_INLINE V max(V a, V b) {
  return a > b ? a : b;
}

template <class V>
ALWAYS_INLINE auto sum(V v) {
  constexpr int n = sizeof(v) / sizeof(v[0]);
  if constexpr (n == 2) {
    return v[0] + v[1];
  } else {  // halves are added until two lanes are left: log2(n) steps
    using Half = Vector<std::remove_reference_t<decltype(v[0])>, sizeof(v) / 2>;
    Half half[2];
    memcpy(half, &v, sizeof v);
    return sum(half[0] + half[1]);
  }
}

template <class V>
ALWAYS_INLINE auto highest(V v) {
  constexpr int n = sizeof(v) / sizeof(v[0]);
  if constexpr (n == 2) {
    return v[0] > v[1] ? v[0] : v[1];
  } else {
    using Half = Vector<std::remove_reference_t<decltype(v[0])>, sizeof(v) / 2>;
    Half half[2];
    memcpy(half, &v, sizeof v);
    return highest(max(half[0], half[1]));
  }
}

// e^x. float: x = n ln 2 + r with |r| <= ln 2 / 2, e^r by a polynomial (minimax, relative error 3e-9), 2^n by the
// exponent field. Below -87.3 the result is 0, above 88.4 infinity; NaN stays NaN.
template <int Bytes>
ALWAYS_INLINE Vector<float, Bytes> exp(Vector<float, Bytes> x) {
  using V = Vector<float, Bytes>;
  const V shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer n lands in the lowest bits
  const V n = shifted - 12582912.0f;
  const V r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts
  V p = r * 0.00138146f + 0.00836871f;
  p = p * r + 0.04166839f;
  p = p * r + 0.16666521f;
  p = p * r + 0.49999993f;
  p = (p * r) * r + r + 1.0f;
  V y = (V)((Words<Bytes>)p + ((Words<Bytes>)shifted << 23));
  y = x < -87.3f ? V{} : y;
  return x <= 88.3f ? y : x * __builtin_inff();  // infinity, or NaN where x is
}

template <int Bytes>
ALWAYS_INLINE Vector<double, Bytes> exp(Vector<double, Bytes> x) {
  for (int i = 0; i < lanes<double, Bytes>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

// 2^x for x <= 127: 2^r by a polynomial (minimax, relative error 2e-9), |r| <= 1/2, and the rest into the exponent field.
// Exactly 0 below -126.5, NaN where x is; what comes out above 127 is arbitrary.
template <int Bytes>
ALWAYS_INLINE Vector<float, Bytes> exp2(Vector<float, Bytes> x) {
  using V = Vector<float, Bytes>;
  x = x < -127.0f ? V{} - 127.0f : x;
  const V shifted = x + 12582912.0f;  // 1.5 * 2^23: the integer n lands in the lowest bits
  const V r = x - (shifted - 12582912.0f);
  V p = r * 0.000153533620f + 0.00133988739f;
  p = p * r + 0.00961843692f;
  p = p * r + 0.0555033237f;
  p = p * r + 0.240226477f;
  p = p * r + 0.693147182f;
  p = p * r + 1.0f;
  return p * (V)(((Words<Bytes>)shifted + 127) << 23);  // a product, not a sum of bits: p may be NaN
}

template <int Bytes>
ALWAYS_INLINE Vector<double, Bytes> exp2(Vector<double, Bytes> x) {
  for (int i = 0; i < lanes<double, Bytes>; ++i) x[i] = __builtin_exp2(x[i]);
  return x;
}

// 1 / x for 1e-37 < x < 1e37, to 1 ulp: a guess from the exponent (wrong by 12% at most), and twice y (1 + e + e^2) with
// e = 1 - x y, which cubes the error. Seven cheap instructions, where a division holds its unit for sixteen cycles.
template <int Bytes>
ALWAYS_INLINE Vector<float, Bytes> reciprocal(Vector<float, Bytes> x) {
  using V = Vector<float, Bytes>;
  V y = (V)(0x7ef311c7u - (Words<Bytes>)x);
  for (int i = 0; i < 2; ++i) {
    const V e = 1.0f - x * y;
    y = y + y * (e + e * e);
  }
  return y;
}

template <int Bytes>
ALWAYS_INLINE Vector<double, Bytes> reciprocal(Vector<double, Bytes> x) {
  return 1.0 / x;
}

// tanh x and its derivative 1 - tanh^2 x, from e = e^(-2|x|): (1 - e) / (1 + e) and 4 e / (1 + e)^2. Both keep their
// relative precision: where 1 - e would cancel, below 1/2, tanh x = x + x^3 P(x^2) (minimax, relative error 1.5e-8).
template <class V>
struct TanhAndSlope {
  V value, slope;
};

template <int Bytes>
ALWAYS_INLINE TanhAndSlope<Vector<float, Bytes>> tanh(Vector<float, Bytes> x) {
  using V = Vector<float, Bytes>;
  const V size = x < 0 ? -x : x, e = exp<Bytes>(-2.0f * size), r = reciprocal<Bytes>(1.0f + e);
  const V far = (1.0f - e) * r, square = x * x;
  V p = square * 0.0172491478f - 0.0530496636f;
  p = p * square + 0.133259466f;
  p = p * square - 0.33333147f;
  const V near = x + x * (square * p);
  return {size < 0.5f ? near : x < 0 ? -far : far, 4.0f * e * r * r};
}

template <int Bytes>
ALWAYS_INLINE TanhAndSlope<Vector<double, Bytes>> tanh(Vector<double, Bytes> x) {
  Vector<double, Bytes> slope;
  for (int i = 0; i < lanes<double, Bytes>; ++i) {
    const double e = __builtin_exp(-2 * __builtin_fabs(x[i])), r = 1 / (1 + e);
    slope[i] = 4 * e * r * r;
    x[i] = __builtin_tanh(x[i]);
  }
  return {x, slope};
}

}  // namespace minigpt::simd
