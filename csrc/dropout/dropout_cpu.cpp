#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/philox_simd.h"
#include "../common/stream.h"
#include "dropout.h"

namespace minigpt {
namespace {

constexpr int64_t kChunk = 16384;  // elements a task; a multiple of what kept_elements serves at a time

// Which of the elements i, i + 1, ... are kept (all ones), for four vectors of A behind each other (double: eight); i is a
// multiple of 4. A Philox call a 64-bit lane makes the words of four elements: lane l of those that are joined to 64 bits
// holds the first, or last, two of element i + 4 l.
template <class A, int Bytes>
struct KeptElements {
  static constexpr int W = simd::lanes<A, Bytes>, lanes = simd::lanes<uint64_t, Bytes>, count = 4 * lanes;
  using Mask = decltype(simd::Vector<A, Bytes>{} < simd::Vector<A, Bytes>{});
  uint32_t word[count];
  uint32_t threshold;

  ALWAYS_INLINE KeptElements(uint64_t seed, uint32_t threshold, int64_t i) : threshold(threshold) {
    using V = Longs<Bytes>;
    V group;
    for (int lane = 0; lane < lanes; ++lane) group[lane] = lane;
    group += static_cast<uint64_t>(i / 4);
    const PhiloxLanes<Bytes> w = philox_lanes<Bytes>(seed, group, group >> 32, V{}, V{} + kDropoutStream);
    const V first = (w.word[0] & 0xffffffffu) | w.word[1] << 32, last = (w.word[2] & 0xffffffffu) | w.word[3] << 32;
    uint64_t pair[2 * lanes];
    for (int lane = 0; lane < lanes; ++lane) pair[2 * lane] = first[lane], pair[2 * lane + 1] = last[lane];
    memcpy(word, pair, sizeof word);
  }

  // Of the vector of A that begins `ahead` elements behind i.
  ALWAYS_INLINE Mask at(int64_t ahead) const {
    if constexpr (sizeof(A) == 4) {
      simd::Words<Bytes> w;
      memcpy(&w, word + ahead, sizeof w);
      return (Mask)(w >= threshold);
    } else {
      Mask mask;
      for (int e = 0; e < W; ++e) mask[e] = word[ahead + e] >= threshold ? -1 : 0;
      return mask;
    }
  }
};

template <class T, class Out>
struct Dropout {
  template <int Bytes>
  static ALWAYS_INLINE void run(const DropoutParams* p, int64_t begin, int64_t end) {
    using A = accumulate_t<T>;
    using V = simd::Vector<A, Bytes>;
    using Kept = KeptElements<A, Bytes>;
    const T* const x = static_cast<const T*>(p->x);
    const Out* const residual = static_cast<const Out*>(p->residual);
    Out* const out = static_cast<Out*>(p->out);
    const uint64_t seed = static_cast<uint64_t>(*p->seed);
    const A scale = A(p->scale);
    const bool streamed = is_streamed(out, p->n * sizeof(Out));
    const auto drop = [&](int64_t i, auto left, typename Kept::Mask mask) __attribute__((always_inline)) {
      simd::fetch_ahead(x + i);
      V v = mask ? simd::load_part<Bytes>(x + i, left) * scale : V{};
      if (residual) {
        simd::fetch_ahead(residual + i);
        v += simd::load_part<Bytes>(residual + i, left);
      }
      simd::store_part<Bytes>(out + i, v, left, streamed);
    };
    int64_t block = begin;
    for (; block + Kept::count <= end; block += Kept::count) {
      const Kept kept(seed, p->threshold, block);
      for (int64_t ahead = 0; ahead < Kept::count; ahead += Kept::W) drop(block + ahead, simd::Whole{}, kept.at(ahead));
    }
    if (block < end) {
      const Kept kept(seed, p->threshold, block);
      for (int64_t i = block; i < end; i += Kept::W) drop(i, end - i, kept.at(i - block));
    }
    if (streamed) simd::end_stream();
  }
};

}  // namespace

void dropout_cpu(const DropoutParams& p) {
  dispatch_mixed(p.dtype, p.out_dtype, [&](auto type, auto out_type) {
    using Body = Dropout<typename decltype(type)::type, typename decltype(out_type)::type>;
    parallel_ranges(p.n, kChunk, [&](int64_t begin, int64_t end) { simd::call<Body>(&p, begin, end); });
  });
}

}  // namespace minigpt
