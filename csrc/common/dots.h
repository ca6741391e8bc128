// Dot products of 8-bit and 16-bit numbers, four or two to a lane, for bodies that are compiled for the instruction sets
// which have them too:
//
//   template <class T> struct Multiply {
//     template <simd::Isa isa> static ALWAYS_INLINE void run(...) { ... simd::dot_bf16<isa>(sum, a, b) ... }
//   };
//   simd::call_dots<Multiply<float>>(...);
#pragma once
#include "simd.h"

namespace minigpt::simd {

struct Isa {
  int bytes;  // of a vector
  bool vnni, bf16;
};

template <class Body, Isa isa, class... Args>
void run_dots_portable(Args... args) {
  Body::template run<isa>(args...);
}
#ifdef __x86_64__
template <class Body, Isa isa, class... Args>
TARGET_AVX2 void run_dots_avx2(Args... args) {
  Body::template run<isa>(args...);
}
template <class Body, Isa isa, class... Args>
TARGET_AVX512 void run_dots_avx512(Args... args) {
  Body::template run<isa>(args...);
}
#endif
#ifdef MINIGPT_DOTS
template <class Body, Isa isa, class... Args>
TARGET_AVX2_VNNI void run_dots_avx2_vnni(Args... args) {
  Body::template run<isa>(args...);
}
template <class Body, Isa isa, class... Args>
TARGET_AVX512_BF16 void run_dots_avx512_bf16(Args... args) {
  Body::template run<isa>(args...);
}
#endif

// From inside a body: another body, compiled for the same instruction set, as a function of its own.
template <class Body, Isa isa, class... Args>
ALWAYS_INLINE void call_dots_from(Args... args) {
#ifdef MINIGPT_DOTS
  if constexpr (isa.bytes == 64 && isa.bf16) return run_dots_avx512_bf16<Body, isa>(args...);
  if constexpr (isa.bytes == 32 && isa.vnni) return run_dots_avx2_vnni<Body, isa>(args...);
#endif
#ifdef __x86_64__
  if constexpr (isa.bytes == 64 && !isa.bf16) return run_dots_avx512<Body, isa>(args...);
  if constexpr (isa.bytes == 32 && !isa.vnni) return run_dots_avx2<Body, isa>(args...);
#endif
  if constexpr (isa.bytes == 16) run_dots_portable<Body, isa>(args...);
}

// Arguments are passed by value: hand over pointers and small structs.
template <class Body, class... Args>
void call_dots(Args... args) {
  switch (level()) {
#ifdef MINIGPT_DOTS
    case Level::avx512_bf16:
      return call_dots_from<Body, Isa{64, true, true}>(args...);
    case Level::avx2_vnni:
      return call_dots_from<Body, Isa{32, true, false}>(args...);
#endif
#ifdef __x86_64__
    case Level::avx512:
      return call_dots_from<Body, Isa{64, false, false}>(args...);
    case Level::avx2:
      return call_dots_from<Body, Isa{32, false, false}>(args...);
#endif
    default:
      return call_dots_from<Body, Isa{16, false, false}>(args...);
  }
}

// sum + a.even * b.even + a.odd * b.odd, of pairs of bf16 in each 32-bit lane. The instruction takes subnormal numbers as
// zero and rounds each product's addition to nearest even; elsewhere the pairs are widened and added in float.
template <Isa isa>
ALWAYS_INLINE Vector<float, isa.bytes> dot_bf16(Vector<float, isa.bytes> sum, Words<isa.bytes> a, Words<isa.bytes> b) {
  using F = Vector<float, isa.bytes>;
#ifdef MINIGPT_DOTS
  if constexpr (isa.bytes == 64 && isa.bf16) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
#endif
  sum += (F)(a << 16) * (F)(b << 16);
  return sum + (F)(a & 0xffff0000u) * (F)(b & 0xffff0000u);
}

// Rounded to nearest even, NaN kept; the instruction makes zeros of numbers that are subnormal in float.
template <Isa isa>
ALWAYS_INLINE Halves<isa.bytes> narrow_bf16(Vector<float, isa.bytes> x) {
#ifdef MINIGPT_DOTS
  if constexpr (isa.bytes == 64 && isa.bf16) {
    Halves<64> half;
    asm("vcvtneps2bf16 %1, %0" : "=v"(half) : "v"(x));
    return half;
  }
#endif
  return narrow<isa.bytes>(x, bfloat16{});
}

// Pairs for dot_bf16: `even` in the lower half of each lane, `odd` in the upper one.
template <Isa isa>
ALWAYS_INLINE Words<isa.bytes> pair_bf16(Vector<float, isa.bytes> even, Vector<float, isa.bytes> odd) {
  return __builtin_convertvector(narrow_bf16<isa>(even), Words<isa.bytes>) |
         __builtin_convertvector(narrow_bf16<isa>(odd), Words<isa.bytes>) << 16;
}

// sum + the four products of each 32-bit lane's bytes, unsigned in a, signed in b; exact.
template <Isa isa>
ALWAYS_INLINE Vector<int32_t, isa.bytes> dot_u8s8(Vector<int32_t, isa.bytes> sum, Words<isa.bytes> a,
                                                  Words<isa.bytes> b) {
  using I = Vector<int32_t, isa.bytes>;
#ifdef MINIGPT_DOTS
  if constexpr (isa.bytes == 64 && isa.vnni) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  } else if constexpr (isa.bytes == 32 && isa.vnni) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
    return sum;
  }
  // Even and odd bytes as 16-bit numbers, for the sum of two products that every x86-64 has.
  using Shorts = Vector<int16_t, isa.bytes>;
  const auto pair = [](Words<isa.bytes> u, Shorts s) __attribute__((always_inline)) {
    I two = (I)u;
    if constexpr (isa.bytes == 16)
      asm("pmaddwd %1, %0" : "+x"(two) : "x"(s));
    else
      asm("vpmaddwd %1, %0, %0" : "+v"(two) : "v"(s));
    return two;
  };
  const Words<isa.bytes> bytes = Words<isa.bytes>{} + 0x00ff00ff;
  return sum + pair(a & bytes, (Shorts)b << 8 >> 8) + pair(a >> 8 & bytes, (Shorts)b >> 8);
#else
  for (int shift = 0; shift < 32; shift += 8) sum += (I)((a >> shift) & 0xff) * ((I)(b << (24 - shift)) >> 24);
  return sum;
#endif
}

// Where 8-bit products are not added four at a time, but two of them to 16 bits.
#ifdef MINIGPT_DOTS
template <Isa isa>
constexpr bool has_short_dots = isa.bytes >= 32 && !isa.vnni;

// sum + the two products of each 16-bit lane's bytes, unsigned in a, signed in b; exact while the sums stay below 2^15.
template <Isa isa>
ALWAYS_INLINE Vector<int16_t, isa.bytes> short_dot_u8s8(Vector<int16_t, isa.bytes> sum, Words<isa.bytes> a,
                                                        Words<isa.bytes> b) {
  Vector<int16_t, isa.bytes> two;
  asm("vpmaddubsw %2, %1, %0" : "=v"(two) : "v"(a), "v"(b));
  return sum + two;
}
#else
template <Isa isa>
constexpr bool has_short_dots = false;
#endif

// The sum of the two 16-bit numbers in each 32-bit lane.
template <int Bytes>
ALWAYS_INLINE Vector<int32_t, Bytes> sum_of_shorts(Vector<int16_t, Bytes> v) {
  const auto both = (Vector<int32_t, Bytes>)v;
  return (both << 16 >> 16) + (both >> 16);
}

}  // namespace minigpt::simd
