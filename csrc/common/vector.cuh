// Short runs of neighbouring elements: one wide access where the address allows it, element by element elsewhere.
#pragma once
#include "device.cuh"

namespace minigpt {

template <class T, int W>
struct alignas(W * sizeof(T)) Vec {
  T at[W];
};

template <class T, int W>
DEVICE bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(Vec<T, W>) == 0;
}

// W elements at p, which is aligned to all of them.
template <int W, class T>
DEVICE Vec<accumulate_t<T>, W> load_whole(const T* p) {
  const Vec<T, W> in = load_vec(reinterpret_cast<const Vec<T, W>*>(p));
  Vec<accumulate_t<T>, W> out;
#pragma unroll
  for (int e = 0; e < W; ++e) out.at[e] = static_cast<accumulate_t<T>>(in.at[e]);
  return out;
}

// W elements at p of which `valid` exist; the others read as 0. No alignment is asked of p.
template <int W, class T>
DEVICE Vec<accumulate_t<T>, W> load_part(const T* p, int64_t valid) {
  using A = accumulate_t<T>;
  if (valid >= W && is_aligned<T, W>(p)) return load_whole<W>(p);
  Vec<A, W> out;
#pragma unroll
  for (int e = 0; e < W; ++e) out.at[e] = e < valid ? static_cast<A>(p[e]) : A(0);
  return out;
}

// The first `valid` of v's W elements to p.
template <int W, class T>
DEVICE void store_part(T* p, const Vec<accumulate_t<T>, W>& v, int64_t valid) {
  if (valid >= W && is_aligned<T, W>(p)) {
    Vec<T, W> out;
#pragma unroll
    for (int e = 0; e < W; ++e) out.at[e] = static_cast<T>(v.at[e]);
    store_vec(reinterpret_cast<Vec<T, W>*>(p), out);
  } else {
#pragma unroll
    for (int e = 0; e < W; ++e)
      if (e < valid) p[e] = static_cast<T>(v.at[e]);
  }
}

}  // namespace minigpt
