// Decode attention on the CPU: tasks and their merge. How a task attends stands in decode_few.h and decode_many.h.
#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "decode_attention.h"
#include "decode_few.h"
#include "decode_many.h"
#include "decode_splits.h"

namespace minigpt {
namespace {

// The queries of a task go into its scratch, and its results where they belong: (queries x heads) rows of D.
template <class T, class Body>
void attend(DecodeTask<accumulate_t<T>> t, int64_t split) {
  using A = accumulate_t<T>;
  const DecodeAttentionParams& p = *t.p;
  const PagedLayout& cache = p.layout;
  constexpr int64_t W = simd::lanes<A, 16>, whole = 64 / sizeof(A);
  const int64_t D = cache.D, heads = t.kv_end - t.kv_begin, rows = heads * t.queries;
  t.padded = (D + whole - 1) / whole * whole;
  const int64_t work = Body::work(heads, t.queries, t.padded);
  Scratch scratch(2 * Scratch::bytes_for<A>(rows * t.padded) + 2 * Scratch::bytes_for<A>(rows) +
                  Scratch::bytes_for<A>(work));
  t.q = scratch.take<A>(rows * t.padded);
  t.acc = scratch.take<A>(rows * t.padded);
  t.m = scratch.take<A>(rows);
  t.l = scratch.take<A>(rows);
  t.work = scratch.take<A>(work);
  std::fill_n(t.acc, rows * t.padded, A(0));
  std::fill_n(t.m, rows, A(-INFINITY));
  std::fill_n(t.l, rows, A(0));

  const int64_t first_row = cache.query_start ? cache.query_start[t.b] : t.b * cache.T;
  const auto row_of = [&](int64_t i) { return (t.query_begin + i) / t.group(); };  // among the sequence's new tokens
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < t.queries; ++i) {
      const int64_t at = cache.query_start ? (first_row + row_of(i)) * p.q_token_stride
                                           : t.b * p.q_batch_stride + row_of(i) * p.q_token_stride;
      const T* q = static_cast<const T*>(p.q) + at + t.head(t.kv_begin + h, i) * p.q_head_stride;
      A* const to = t.q + (h * t.queries + i) * t.padded;
      std::fill_n(to, t.padded, A(0));
      for (int64_t d = 0; d < D; d += W) simd::store<16>(to + d, simd::load_part<16>(q + d, D - d) * A(p.scale));
    }

  simd::call<Body>(static_cast<const DecodeTask<A>*>(&t));

  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < t.queries; ++i) {
      const int64_t from = h * t.queries + i, to = (first_row + row_of(i)) * p.H + t.head(t.kv_begin + h, i);
      const A *acc = t.acc + from * t.padded, l = t.l[from];
      if (p.splits == 1) {
        const A factor = l == 0 ? A(0) : A(1) / l;
        T* const out = static_cast<T*>(p.out) + to * D;
        for (int64_t d = 0; d < D; d += W) simd::store_part<16>(out + d, simd::load<16>(acc + d) * factor, D - d);
      } else {
        std::copy_n(acc, D, static_cast<A*>(p.partial_out) + (to * p.splits + split) * D);
        A* const stats = static_cast<A*>(p.partial_stats) + (to * p.splits + split) * 2;
        stats[0] = t.m[from], stats[1] = l;
      }
    }
}

// One query row and head: the splits' sums, weighted by e^(m - highest m), in the order of the splits.
template <class T>
struct Merge {
  using A = accumulate_t<T>;

  template <int Bytes>
  static ALWAYS_INLINE void run(const DecodeAttentionParams* p, int64_t at) {
    constexpr int W = simd::lanes<A, Bytes>;
    const int64_t D = p->layout.D;
    const A* stats = static_cast<const A*>(p->partial_stats) + at * p->splits * 2;
    const A* partial = static_cast<const A*>(p->partial_out) + at * p->splits * D;
    A highest = -INFINITY, total = 0;
    for (int64_t s = 0; s < p->splits; ++s) highest = std::max(highest, stats[2 * s]);
    alignas(64) A acc[256] = {};  // the largest D
    for (int64_t s = 0; s < p->splits; ++s) {
      if (stats[2 * s + 1] == 0) continue;  // this split saw nothing
      const A factor = std::exp(stats[2 * s] - highest);
      total += factor * stats[2 * s + 1];
      for (int64_t d = 0; d < D; ++d) acc[d] += factor * partial[s * D + d];
    }
    const A factor = total == 0 ? A(0) : A(1) / total;
    T* const out = static_cast<T*>(p->out) + at * D;
    for (int64_t d = 0; d < D; d += W) simd::store_part<Bytes>(out + d, simd::load<Bytes>(acc + d) * factor, D - d);
  }
};

}  // namespace

int64_t decode_attention_tasks(const DecodeAttentionParams& p) {
  const DecodeCut cut = decode_cut_cpu(p.layout, p.H);
  return p.layout.B * cut.head_ranges * cut.query_chunks * p.splits;
}

void decode_attention_task_cpu(const DecodeAttentionParams& p, int64_t task) {
  const PagedLayout& l = p.layout;
  const DecodeCut cut = decode_cut_cpu(l, p.H);
  const int64_t split = task % p.splits, chunk = task / p.splits % cut.query_chunks;
  const int64_t range = task / p.splits / cut.query_chunks % cut.head_ranges;
  const int64_t b = task / p.splits / cut.query_chunks / cut.head_ranges;
  const int64_t heads = l.H_kv / cut.head_ranges, group = p.H / l.H_kv;
  const int64_t rows = l.query_start ? l.query_start[b + 1] - l.query_start[b] : l.T, length = l.seq_lens[b];
  const int64_t query_begin = chunk * kManyQueries;
  const int64_t queries = std::min(rows * group, query_begin + kManyQueries) - query_begin;
  if (queries <= 0) return;
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    const DecodeTask<A> t{
        .p = &p,
        .b = b,
        .key_begin = std::min(length, split * p.keys_per_split),
        .key_end = std::min(length, (split + 1) * p.keys_per_split),
        .kv_begin = range * heads,
        .kv_end = (range + 1) * heads,
        .query_begin = query_begin,
        .queries = queries,
        .first_position = length - rows,
    };
    const auto attend_over = [&](auto cache_type) {
      using C = typename decltype(cache_type)::type;
      if (rows * group <= kFewQueries) return attend<T, AttendFew<A, C>>(t, split);
      attend<T, AttendMany<A, C>>(t, split);
    };
    if constexpr (sizeof(T) < 8) {
      if (p.k_scales) return attend_over(Type<int8_t>{});
    }
    attend_over(type);
  });
}

int64_t decode_attention_merges(const DecodeAttentionParams& p) {
  return p.splits > 1 ? new_token_rows(p.layout) * p.H : 0;
}

void decode_attention_merge_cpu(const DecodeAttentionParams& p, int64_t merge) {
  dispatch(p.dtype, [&](auto type) { simd::call<Merge<typename decltype(type)::type>>(&p, merge); });
}

void decode_attention_cpu(const DecodeAttentionParams& p) {
  const PagedLayout& l = p.layout;
  int64_t keys = 0;
  for (int64_t b = 0; b < l.B; ++b) keys += l.seq_lens[b];
  const bool worth_waking = keys * l.D * p.H * new_token_rows(l) / std::max<int64_t>(1, l.B) > 100000;
  parallel_tasks(decode_attention_tasks(p), worth_waking, [&](int64_t i) { decode_attention_task_cpu(p, i); });
  parallel_tasks(decode_attention_merges(p), worth_waking, [&](int64_t i) { decode_attention_merge_cpu(p, i); });
}

}  // namespace minigpt
