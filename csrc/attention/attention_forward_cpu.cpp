// Attention forward on the CPU. A task takes a run of queries of one head. It goes over the keys tile by tile; each tile of
// keys is packed once and met by all of the run's queries, kQueries at a time, with an online softmax a query:
//   m' = max(m, max s)    l' = l e^(m - m') + sum e^(s - m')    o' = o e^(m - m') + sum drop(e^(s - m')) v
// Exponents are of 2, m in units of ln 2. m follows the maximum only where that is kSlack above it: a sum may well consist of
// terms up to 2^kSlack, and most tiles then leave o as it is. Dropout's factor comes with the division by l.
#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "attention_tiles.h"

namespace minigpt {
namespace {

constexpr int64_t kRun = 256;  // most queries of a task
constexpr double kSlack = 8;

template <class T>
struct Forward {
  using A = accumulate_t<T>;

  // The softmax of a tile: scores (rows a multiple of 4, lanes of n queries), of which `unit` makes exponents of 2, become
  // probabilities relative to m, packed pairs of keys in place where products want them. factors: what o is to be
  // multiplied by; returns whether any is not 1. A NaN among a query's scores makes its l, and so its output, NaN.
  template <simd::Isa isa>
  static ALWAYS_INLINE bool softmax(const AttentionForwardParams& p, A* scores, A* m, A* l, A* factors, int64_t bh,
                                    int64_t i0, int64_t n, int64_t j0, int64_t rows, A unit) {
    using P = Packing<T, isa>;
    using V = simd::Vector<A, isa.bytes>;
    const AttentionShape& s = p.shape;
    const uint64_t seed = s.dropout_threshold ? uint64_t(*p.seed) : 0;
    bool rescale = false;
    for (int64_t i = 0; i < n; i += P::W) {
      A* const column = scores + i;
      V high[4];
      for (int k = 0; k < 4; ++k) high[k] = simd::load<isa.bytes>(column + k * kQueries) * unit;
      for (int64_t r = 4; r < rows; r += 4)
        for (int k = 0; k < 4; ++k)
          high[k] = simd::max(high[k], simd::load<isa.bytes>(column + (r + k) * kQueries) * unit);
      const V highest = simd::max(simd::max(high[0], high[1]), simd::max(high[2], high[3]));
      V base = simd::load<isa.bytes>(m + i), sum = simd::load<isa.bytes>(l + i);
      const auto grown = highest > base + A(kSlack);
      if (simd::highest(grown ? V{} + 1 : V{}) > 0) {
        const V factor = grown ? simd::exp2<isa.bytes>(base - highest) : V{} + 1;
        base = grown ? highest : base;
        sum *= factor;
        simd::store<isa.bytes>(m + i, base);
        simd::store<isa.bytes>(factors + i, factor);
        rescale = true;
      } else {
        simd::store<isa.bytes>(factors + i, V{} + 1);
      }
      const V shift = base == -INFINITY ? V{} : base;  // nothing seen so far
      for (int64_t r = 0; r < rows; r += 4) {
        V probability[4];
        for (int k = 0; k < 4; ++k) {
          probability[k] = simd::exp2<isa.bytes>(simd::load<isa.bytes>(column + (r + k) * kQueries) * unit - shift);
          sum += probability[k];
        }
        if (s.dropout_threshold) {
          const auto kept = kept_keys<A, isa.bytes>(seed, s.dropout_threshold, bh, i0 + i, j0 + r);
          for (int k = 0; k < 4; ++k) probability[k] = kept.lanes[k] ? probability[k] : V{};
        }
        for (int k = 0; k < 4; k += P::depth) {
          if constexpr (P::pairs)
            *(typename P::V*)(column + (r + k) / 2 * kQueries) =
                simd::pair_bf16<isa>(probability[k], probability[k + 1]);
          else
            simd::store<isa.bytes>(column + (r + k) * kQueries, probability[k]);
        }
      }
      simd::store<isa.bytes>(l + i, sum);
    }
    return rescale;
  }

  template <simd::Isa isa>
  static ALWAYS_INLINE void run(const AttentionForwardParams* params, int64_t b, int64_t h, int64_t begin,
                                int64_t end) {
    using P = Packing<T, isa>;
    using E = typename P::E;
    constexpr int W = P::W;
    const AttentionForwardParams& p = *params;
    const AttentionShape& s = p.shape;
    const int64_t n = end - begin, D = s.D, padded = round_up(D, W), width = P::width(D), lines = P::packed(D);
    const int64_t h_kv = h / (s.H / s.H_kv), bh = b * s.H + h, lanes = round_up(n, kQueries);
    Scratch scratch(Scratch::bytes_for<E>(P::columns_size(lanes, D)) + Scratch::bytes_for<A>(n * padded) +
                    2 * Scratch::bytes_for<A>(lanes) + Scratch::bytes_for<E>(kKeys * width) +
                    Scratch::bytes_for<E>(kKeys * padded) + Scratch::bytes_for<A>(kKeys * kQueries));
    E* q_columns = scratch.take<E>(P::columns_size(lanes, D));
    A *out = scratch.take<A>(n * padded), *m = scratch.take<A>(lanes), *l = scratch.take<A>(lanes);
    E *k_rows = scratch.take<E>(kKeys * width), *v_rows = scratch.take<E>(kKeys * padded);
    A* scores = scratch.take<A>(kKeys * kQueries);

    const T* q_head = static_cast<const T*>(p.q) + b * p.q_strides.batch + h * p.q_strides.head;
    const T* k_head = static_cast<const T*>(p.k) + b * p.k_strides.batch + h_kv * p.k_strides.head;
    const T* v_head = static_cast<const T*>(p.v) + b * p.v_strides.batch + h_kv * p.v_strides.head;
    for (int64_t i0 = 0; i0 < n; i0 += kQueries)
      P::columns(q_columns + i0 * lines, q_head + (begin + i0) * p.q_strides.token, p.q_strides.token,
                 std::min(kQueries, n - i0), D);
    std::fill_n(out, n * padded, A(0));
    std::fill_n(m, lanes, A(-INFINITY));
    std::fill_n(l, lanes, A(0));

    const bool plain = p.rule.is_plain() && s.scale > 0;  // then the maximum of raw scores is that of the scaled ones
    const A unit = plain ? s.scale * kLog2E : kLog2E;
    const Range keys = keys_of(s, begin, end);
    for (int64_t j0 = keys.first; j0 < keys.last; j0 += kKeys) {
      const int64_t n_keys = std::min(kKeys, keys.last - j0);
      P::rows_along(k_rows, k_head + j0 * p.k_strides.token, p.k_strides.token, n_keys, round_up(n_keys, 4), D);
      P::rows_over(v_rows, v_head + j0 * p.v_strides.token, p.v_strides.token, n_keys, D);
      for (int64_t j = j0 + kKeys; j < std::min(j0 + 2 * kKeys, keys.last); ++j)  // the next tile comes meanwhile
        for (int64_t d = 0; d < D; d += 64 / int64_t(sizeof(T))) {
          __builtin_prefetch(k_head + j * p.k_strides.token + d);
          __builtin_prefetch(v_head + j * p.v_strides.token + d);
        }
      for (int64_t i0 = 0; i0 < n; i0 += kQueries) {
        const int64_t queries = std::min(kQueries, n - i0), first = begin + i0;
        const int64_t seen = visible(s, first + queries - 1, j0, n_keys).last;  // the last query sees furthest
        if (seen == 0 || visible(s, first, j0, n_keys).first == kKeys) continue;
        const int64_t rows = round_up(seen, 4), columns = round_up(queries, W);
        P::scores({rows, columns, lines, k_rows, width, 1, q_columns + i0 * lines, kQueries, scores, kQueries, false},
                  queries);
        if (!plain)
          apply<A, isa.bytes>(p.rule, h,
                              {scores, nullptr, rows, columns, kQueries, first + s.S - s.T - j0, -1, A(s.scale)});
        mask_tile<A, isa.bytes>(s, scores, first, columns, j0, n_keys, rows);
        A factors[kQueries];
        if (softmax<isa>(p, scores, m + i0, l + i0, factors, bh, first, columns, j0, rows, unit))
          for (int64_t i = 0; i < queries; ++i)
            if (A* row = out + (i0 + i) * padded; factors[i] != 1)
              for (int64_t d = 0; d < padded; d += W)
                simd::store<isa.bytes>(row + d, simd::load<isa.bytes>(row + d) * factors[i]);
        P::product({queries, padded, P::packed(seen), (const E*)scores, 1, kQueries, v_rows, padded, out + i0 * padded,
                    padded, true});
      }
    }

    for (int64_t i = 0; i < n; ++i) {
      T* row = static_cast<T*>(p.out) + ((b * s.T + begin + i) * s.H + h) * D;
      const A factor = l[i] == 0 ? A(0) : A(s.dropout_scale) / l[i];
      for (int64_t d = 0; d < D; d += W)
        simd::store_part<isa.bytes>(row + d, simd::load<isa.bytes>(out + i * padded + d) * factor, D - d);
      // Minus infinity where nothing was seen.
      static_cast<A*>(p.lse)[bh * s.T + begin + i] = m[i] * A(kLn2) + std::log(l[i]);
    }
  }
};

}  // namespace

void attention_forward_cpu(const AttentionForwardParams& p) {
  const AttentionShape& s = p.shape;
  // Long runs share the packing of keys among more queries; short ones keep many threads busy where heads are few. A row's
  // result does not depend on the run that it is in.
  const int64_t heads = s.B * s.H, workers = threads();
  int64_t run = kRun;
  while (run > kQueries && heads * ((s.T + run - 1) / run) < 4 * workers) run /= 2;
  const int64_t runs = (s.T + run - 1) / run;
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    parallel_tasks(runs * heads, worth_waking(s), [&](int64_t task) {
      const int64_t head = task % heads, begin = (runs - 1 - task / heads) * run;  // causal: the longest first
      call_for<T, Forward<T>>(&p, head / s.H, head % s.H, begin, std::min(s.T, begin + run));
    });
  });
}

}  // namespace minigpt
