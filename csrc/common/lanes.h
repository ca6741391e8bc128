// Vectors side by side: their sums in one vector, and their transpose; the lowest bytes of a vector's lanes side by side.
#pragma once
#include <utility>

#include "simd.h"

namespace minigpt::simd {

// From a and b taken as one row of 2 W lanes, in pieces of `Piece` lanes: the even pieces plus the odd ones.
template <int Piece, class V, int... I>
ALWAYS_INLINE V add_pieces(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I / Piece * 2 * Piece + I % Piece)...) +
         __builtin_shufflevector(a, b, ((I / Piece * 2 + 1) * Piece + I % Piece)...);
}

// The same within each 16 bytes, where the shuffles are cheapest; lanes of a and b come to alternate by `Piece`.
template <int Piece, int Block, class V, int... I>
ALWAYS_INLINE V add_pieces_in_blocks(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int W = sizeof...(I);
  const auto from = [](int i, int odd) constexpr {
    const int in = i % Block, piece = in / Piece;  // pieces of the result: a, b, a, b
    return (piece % 2 ? W : 0) + i / Block * Block + (piece / 2 + odd * Block / Piece / 2) * Piece + in % Piece;
  };
  return __builtin_shufflevector(a, b, from(I, 0)...) + __builtin_shufflevector(a, b, from(I, 1)...);
}

// Lane i of the result is the sum of the lanes of v[i]; v has as many vectors as a vector has lanes. Costs three
// instructions a vector, where a sum of each by itself costs seven or eight.
template <class A, int Bytes>
ALWAYS_INLINE Vector<A, Bytes> sum_each(Vector<A, Bytes>* v) {
  constexpr int W = lanes<A, Bytes>, block = 16 / int(sizeof(A));
  constexpr auto all = std::make_integer_sequence<int, W>{};
  int n = W;
  for (int i = 0; i < n / 2; ++i) v[i] = add_pieces_in_blocks<1, block>(v[2 * i], v[2 * i + 1], all);
  n /= 2;
  if constexpr (block == 4) {
    for (int i = 0; i < n / 2; ++i) v[i] = add_pieces_in_blocks<2, block>(v[2 * i], v[2 * i + 1], all);
    n /= 2;
  }
  if constexpr (W > block) {
    for (int i = 0; i < n / 2; ++i) v[i] = add_pieces<block>(v[2 * i], v[2 * i + 1], all);
    n /= 2;
  }
  if constexpr (W > 2 * block) v[0] = add_pieces<block>(v[0], v[1], all);
  return v[0];
}

template <class V, int... I>
ALWAYS_INLINE void interleave_lines(const V* from, V* to, std::integer_sequence<int, I...>) {
  constexpr int W = sizeof...(I);
  for (int i = 0; i < W / 2; ++i) {  // lines i and i + W / 2
    to[2 * i] = __builtin_shufflevector(from[i], from[i + W / 2], (I % 2 ? W + I / 2 : I / 2)...);
    to[2 * i + 1] = __builtin_shufflevector(from[i], from[i + W / 2], (I % 2 ? W + (W + I) / 2 : (W + I) / 2)...);
  }
}

// A W x W block, turned over in its registers by log2(W) rounds of interleaving lines.
template <class A, int Bytes>
ALWAYS_INLINE void transpose(Vector<A, Bytes>* v) {
  constexpr int W = lanes<A, Bytes>, rounds = W == 2 ? 1 : W == 4 ? 2 : W == 8 ? 3 : 4;
  Vector<A, Bytes> turned[W];
  for (int round = 0; round < rounds; ++round) {
    interleave_lines(v, turned, std::make_integer_sequence<int, W>{});
    for (int i = 0; i < W; ++i) v[i] = turned[i];
  }
}

template <int Bytes, int... I>
ALWAYS_INLINE Quarters<Bytes> low_bytes(Vector<int8_t, Bytes> bytes, std::integer_sequence<int, I...>) {
  const Vector<int8_t, Bytes> first = __builtin_shufflevector(bytes, bytes, (4 * I % Bytes)...);
  Quarters<Bytes> q;
  memcpy(&q, &first, sizeof q);
  return q;
}

// The lowest byte of each word.
template <int Bytes>
ALWAYS_INLINE Quarters<Bytes> low_bytes(Vector<int32_t, Bytes> words) {
#ifdef __x86_64__  // gcc 12 takes a conversion apart, lane by lane: 5 ns for each vector
  if constexpr (Bytes == 64) {
    Quarters<Bytes> q;
    asm("vpmovdb %1, %0" : "=v"(q) : "v"(words));
    return q;
  } else if constexpr (Bytes == 32) {
    return low_bytes<Bytes>((Vector<int8_t, Bytes>)words, std::make_integer_sequence<int, Bytes>{});
  }
#endif
  return __builtin_convertvector(words, Quarters<Bytes>);
}

}  // namespace minigpt::simd
