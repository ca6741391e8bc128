// Dropout on the CPU: Philox for a vector of counters at a time, and attention's for queries and four keys.
#pragma once
#include "philox.h"
#include "simd.h"

namespace minigpt {

template <int Bytes>
using Longs = simd::Vector<uint64_t, Bytes>;

// The products of the lower halves of 64-bit lanes: an instruction that compilers do not find by themselves.
template <int Bytes>
ALWAYS_INLINE Longs<Bytes> multiply_lower_halves(Longs<Bytes> a, Longs<Bytes> b) {
#ifdef __x86_64__
  if constexpr (Bytes == 64) {
    asm("vpmuludq %2, %1, %0" : "=v"(a) : "v"(a), "v"(b));
    return a;
  } else if constexpr (Bytes == 32) {
    asm("vpmuludq %2, %1, %0" : "=x"(a) : "x"(a), "x"(b));
    return a;
  }
#endif
  return (a & 0xffffffffu) * (b & 0xffffffffu);
}

template <int Bytes>
struct PhiloxLanes {
  Longs<Bytes> word[4];  // each in the lower half of its lane; the upper half is arbitrary
};

// philox(seed, c0, c1, c2, c3) of philox.h for the counters in the lanes' lower halves. A number is kept in the lower half of a
// lane, so that a product leaves its upper word one shift away, and what a step leaves in upper halves does no harm.
template <int Bytes>
ALWAYS_INLINE PhiloxLanes<Bytes> philox_lanes(uint64_t seed, Longs<Bytes> x0, Longs<Bytes> x1, Longs<Bytes> x2,
                                              Longs<Bytes> x3) {
  using V = Longs<Bytes>;
  const V m0 = V{} + 0xD2511F53u, m1 = V{} + 0xCD9E8D57u;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const V a = multiply_lower_halves<Bytes>(x0, m0), b = multiply_lower_halves<Bytes>(x2, m1);
    x0 = (b >> 32) ^ x1 ^ uint64_t{k0}, x1 = b, x2 = (a >> 32) ^ x3 ^ uint64_t{k1}, x3 = a;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{x0, x1, x2, x3}};
}

// The mask of attention_dropout_words for the queries i, i + 1, ... (lanes of A) and the keys j ... j + 3, j a multiple
// of 4: kept.lanes[n] is all ones where key j + n is kept.
template <class A, int Bytes>
struct KeptKeys {
  decltype(simd::Vector<A, Bytes>{} < simd::Vector<A, Bytes>{}) lanes[4];
};

template <class A, int Bytes>
ALWAYS_INLINE KeptKeys<A, Bytes> kept_keys(uint64_t seed, uint32_t threshold, int64_t bh, int64_t i, int64_t j) {
  constexpr int n = simd::lanes<uint64_t, Bytes>, step = sizeof(uint64_t) / sizeof(A);
  const Longs<Bytes> c0 = Longs<Bytes>{} + static_cast<uint32_t>(j / 4),
                     c2 = Longs<Bytes>{} + static_cast<uint32_t>(bh);
  Longs<Bytes> query;
  for (int lane = 0; lane < n; ++lane) query[lane] = step * lane;
  query += static_cast<uint64_t>(i);
  const PhiloxLanes<Bytes> even = philox_lanes<Bytes>(seed, c0, query, c2, Longs<Bytes>{});
  KeptKeys<A, Bytes> kept;
  if constexpr (step == 1) {  // double: a lane each
    for (int key = 0; key < 4; ++key) kept.lanes[key] = (even.word[key] & 0xffffffffu) >= uint64_t{threshold};
  } else {  // float: even and odd queries
    const PhiloxLanes<Bytes> odd = philox_lanes<Bytes>(seed, c0, query + 1, c2, Longs<Bytes>{});
    for (int key = 0; key < 4; ++key)
      kept.lanes[key] = (simd::Words<Bytes>)((even.word[key] & 0xffffffffu) | odd.word[key] << 32) >= threshold;
  }
  return kept;
}

}  // namespace minigpt
