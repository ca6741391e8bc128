// Attention backward on the CPU. A task takes the keys of one key/value head and the queries of its group's heads, one head
// after the other, or a run of both; each tile of keys meets the queries that see it, and its probabilities are made anew
// from lse:
//   p = e^(s - lse)   dp = drop(dout v^T)   ds = gain p (dp - delta), delta = sum_d dout out; gain: the rule's derivative
//   dv += drop(p)^T dout     dk += scale ds^T q     dq += scale ds k
// dk and dv are summed over the heads of the group and their queries, dq over keys, in the task's own memory. Where a head is
// cut, each run of keys has its own share of dq and each run of queries its own of dk and dv, and the shares are added in
// order at the end. No atomics: equal runs are equal bit for bit.
#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "attention_tiles.h"

namespace minigpt {
namespace {

constexpr int64_t kBlock = 2 * kQueries;  // queries that dk and dv take up in one product

// The index-th of `runs` runs of n keys or queries, cut between tiles.
Range run_of(int64_t n, int64_t runs, int64_t index) {
  const int64_t tiles = (n + kBlock - 1) / kBlock;
  return {std::min(n, tiles * index / runs * kBlock), std::min(n, tiles * (index + 1) / runs * kBlock)};
}

// The part of `queries` (which begin at a block) that sees any of the keys, in whole blocks, as they are packed.
Range meeting(const AttentionShape& s, Range keys, Range queries) {
  const Range see = queries_of(s, keys.first, keys.last, kBlock);
  const int64_t first = std::max(see.first, queries.first);
  return {first, std::max(first, std::min(round_up(see.last, kQueries), queries.last))};
}

template <class T>
struct Backward {
  using A = accumulate_t<T>;

  // What a task packs of one head's queries, from `first` on: blocks of kQueries turned over, rows, and statistics.
  template <class E>
  struct Queries {
    E *q_columns, *dout_columns;  // (blocks, packed(D), kQueries)
    E *q_rows, *dout_rows;        // (packed(n), D_padded)
    A *lse, *delta;               // in exponents of 2; 0 where the query sees nothing
    A* dq;                        // (n, D_padded)
  };

  // A tile of scores, made by one call and used by the products after it.
  template <class E>
  struct Tile {
    A *scores, *dp, *gains;  // (kKeys, kQueries)
    E *p, *ds;               // (kKeys, packed(kBlock)): to be summed over queries
    E* ds_over;              // (packed(kKeys), kBlock): to be summed over keys
  };

  template <simd::Isa isa>
  static ALWAYS_INLINE void pack(const AttentionBackwardParams& p, int64_t b, int64_t h, Range queries,
                                 const Queries<typename Packing<T, isa>::E>& to) {
    using P = Packing<T, isa>;
    const AttentionShape& s = p.shape;
    const int64_t D = s.D, lines = P::packed(D), n = queries.last - queries.first, padded = round_up(D, P::W);
    const int64_t q_stride = p.q_strides.token, dout_stride = p.dout_strides.token;
    const T* q = static_cast<const T*>(p.q) + b * p.q_strides.batch + h * p.q_strides.head + queries.first * q_stride;
    const T* dout = static_cast<const T*>(p.dout) + b * p.dout_strides.batch + h * p.dout_strides.head +
                    queries.first * dout_stride;
    const T* out = static_cast<const T*>(p.out) + ((b * s.T + queries.first) * s.H + h) * D;
    const A* lse = static_cast<const A*>(p.lse) + (b * s.H + h) * s.T + queries.first;
    for (int64_t i = 0; i < n; i += kQueries) {
      const int64_t part = std::min(kQueries, n - i);
      P::columns(to.q_columns + i * lines, q + i * q_stride, q_stride, part, D);
      P::columns(to.dout_columns + i * lines, dout + i * dout_stride, dout_stride, part, D);
    }
    P::rows_over(to.q_rows, q, q_stride, n, D);
    P::rows_over(to.dout_rows, dout, dout_stride, n, D);
    for (int64_t i = 0; i < round_up(n, kQueries); ++i) {
      simd::Vector<A, isa.bytes> sum = {};
      for (int64_t d = 0; i < n && d < D; d += P::W)
        sum += simd::load_part<isa.bytes>(dout + i * dout_stride + d, D - d) *
               simd::load_part<isa.bytes>(out + i * s.H * D + d, D - d);
      to.delta[i] = simd::sum(sum);
      to.lse[i] = i >= n || lse[i] == -INFINITY ? A(0) : lse[i] * A(kLog2E);
    }
    std::fill_n(to.dq, n * padded, A(0));
  }

  // Scores and dp of n queries (lanes, from i0 on; in a block from `at` on) and `rows` keys become p (dropped: what dv is
  // made from) and ds.
  template <simd::Isa isa>
  static ALWAYS_INLINE void softmax(const AttentionBackwardParams& p, const Tile<typename Packing<T, isa>::E>& tile,
                                    const A* lse, const A* delta, int64_t bh, int64_t i0, int64_t n, int64_t at,
                                    int64_t j0, int64_t rows, A unit) {
    using P = Packing<T, isa>;
    using V = simd::Vector<A, isa.bytes>;
    const AttentionShape& s = p.shape;
    const uint64_t seed = s.dropout_threshold ? uint64_t(*p.seed) : 0;
    for (int64_t i = 0; i < n; i += P::W) {
      const V base = simd::load<isa.bytes>(lse + i), minus = simd::load<isa.bytes>(delta + i);
      for (int64_t r = 0; r < rows; r += 4) {
        V kept[4], ds[4];
        for (int k = 0; k < 4; ++k) {
          kept[k] = simd::exp2<isa.bytes>(simd::load<isa.bytes>(tile.scores + (r + k) * kQueries + i) * unit - base);
          ds[k] = simd::load<isa.bytes>(tile.dp + (r + k) * kQueries + i);
        }
        if (s.dropout_threshold) {
          const auto keep = kept_keys<A, isa.bytes>(seed, s.dropout_threshold, bh, i0 + i, j0 + r);
          for (int k = 0; k < 4; ++k) {
            ds[k] = kept[k] * ((keep.lanes[k] ? ds[k] * A(s.dropout_scale) : V{}) - minus);
            kept[k] = keep.lanes[k] ? kept[k] : V{};
          }
        } else {
          for (int k = 0; k < 4; ++k) ds[k] = kept[k] * (ds[k] - minus);
        }
        if (p.rule.softcap > 0)
          for (int k = 0; k < 4; ++k) ds[k] *= simd::load<isa.bytes>(tile.gains + (r + k) * kQueries + i);
        put<isa>(tile, kept, ds, r, at + i);
      }
    }
  }

  template <simd::Isa isa>
  static ALWAYS_INLINE void put(const Tile<typename Packing<T, isa>::E>& tile, const simd::Vector<A, isa.bytes>* kept,
                                const simd::Vector<A, isa.bytes>* ds, int64_t r, int64_t i) {
    using P = Packing<T, isa>;
    for (int k = 0; k < 4; ++k) {
      const int64_t place = (r + k) * kBlock + i;
      if constexpr (P::pairs) {
        const auto p_half = simd::narrow_bf16<isa>(kept[k]), ds_half = simd::narrow_bf16<isa>(ds[k]);
        memcpy((bfloat16*)tile.p + place, &p_half, sizeof p_half);
        memcpy((bfloat16*)tile.ds + place, &ds_half, sizeof ds_half);
        if (k % 2 == 0)
          *(typename P::V*)(tile.ds_over + (r + k) / 2 * kBlock + i) = simd::pair_bf16<isa>(ds[k], ds[k + 1]);
      } else {
        simd::store<isa.bytes>(tile.p + place, kept[k]);
        simd::store<isa.bytes>(tile.ds + place, ds[k]);
      }
    }
  }

  template <simd::Isa isa>
  static ALWAYS_INLINE void run(const AttentionBackwardParams* params, int64_t b, int64_t h_kv, int64_t key_run,
                                int64_t query_run) {
    using P = Packing<T, isa>;
    using E = typename P::E;
    constexpr int W = P::W;
    const AttentionBackwardParams& p = *params;
    const AttentionShape& s = p.shape;
    const int64_t D = s.D, padded = round_up(D, W), width = P::width(D), lines = P::packed(D), group = s.H / s.H_kv;
    const Range keys = run_of(s.S, p.cut.keys, key_run), queries_of_run = run_of(s.T, p.cut.queries, query_run);
    const Range all = meeting(s, keys, queries_of_run);
    if (all.first == all.last && p.cut.keys > 1 && p.cut.queries > 1) return;  // then nobody reads its shares
    const int64_t begin = keys.first, n_keys_all = keys.last - keys.first;
    const int64_t n_all = all.last - all.first, n_up = round_up(n_all, kBlock);
    Scratch scratch(2 * Scratch::bytes_for<E>(P::columns_size(n_up, D)) + 2 * Scratch::bytes_for<E>(n_up * padded) +
                    2 * Scratch::bytes_for<A>(n_up) + Scratch::bytes_for<A>(n_all * padded) +
                    3 * Scratch::bytes_for<A>(kKeys * kQueries) + 3 * Scratch::bytes_for<E>(kKeys * kBlock) +
                    2 * Scratch::bytes_for<E>(kKeys * width) + Scratch::bytes_for<E>(kKeys * padded) +
                    2 * Scratch::bytes_for<A>(n_keys_all * padded));
    const Queries<E> queries{scratch.take<E>(P::columns_size(n_up, D)),
                             scratch.take<E>(P::columns_size(n_up, D)),
                             scratch.take<E>(n_up * padded),
                             scratch.take<E>(n_up * padded),
                             scratch.take<A>(n_up),
                             scratch.take<A>(n_up),
                             scratch.take<A>(n_all * padded)};
    const Tile<E> tile{scratch.take<A>(kKeys * kQueries), scratch.take<A>(kKeys * kQueries),
                       scratch.take<A>(kKeys * kQueries), scratch.take<E>(kKeys * kBlock),
                       scratch.take<E>(kKeys * kBlock),   P::pairs ? scratch.take<E>(kKeys * kBlock) : nullptr};
    E *k_rows = scratch.take<E>(kKeys * width), *v_rows = scratch.take<E>(kKeys * width);
    E* k_over = P::pairs ? scratch.take<E>(kKeys * padded) : k_rows;  // K again, to be summed over keys
    A *dk = scratch.take<A>(n_keys_all * padded), *dv = scratch.take<A>(n_keys_all * padded);
    std::fill_n(dk, n_keys_all * padded, A(0));
    std::fill_n(dv, n_keys_all * padded, A(0));

    const T* k_head = static_cast<const T*>(p.k) + b * p.k_strides.batch + h_kv * p.k_strides.head;
    const T* v_head = static_cast<const T*>(p.v) + b * p.v_strides.batch + h_kv * p.v_strides.head;
    const bool plain = p.rule.is_plain() && s.scale > 0;  // then the maximum of raw scores is that of the scaled ones
    const A unit = plain ? s.scale * kLog2E : kLog2E;
    for (int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h) {
      pack<isa>(p, b, h, all, queries);
      for (int64_t j = 0; j < n_keys_all; j += kKeys) {
        const int64_t j0 = begin + j, n_keys = std::min(kKeys, s.S - j0);
        P::rows_along(k_rows, k_head + j0 * p.k_strides.token, p.k_strides.token, n_keys, round_up(n_keys, 4), D);
        P::rows_along(v_rows, v_head + j0 * p.v_strides.token, p.v_strides.token, n_keys, round_up(n_keys, 4), D);
        if constexpr (P::pairs) P::rows_over(k_over, k_head + j0 * p.k_strides.token, p.k_strides.token, n_keys, D);
        const Range meet = meeting(s, {j0, j0 + n_keys}, all);
        for (int64_t i0 = meet.first; i0 < meet.last; i0 += kBlock) {
          const int64_t n = std::min(kBlock, meet.last - i0), at = i0 - all.first;
          const int64_t seen = visible(s, i0 + n - 1, j0, n_keys).last;  // the last query sees furthest
          if (seen == 0) continue;
          for (int64_t i = 0; i < n; i += kQueries) {
            const int64_t part = std::min(kQueries, n - i), columns = round_up(part, W);
            const int64_t sees = visible(s, i0 + i + part - 1, j0, n_keys).last, rows = round_up(sees, 4);
            const int64_t line = (at + i) * lines;
            if (rows > 0) {
              P::scores({rows, columns, lines, k_rows, width, 1, queries.q_columns + line, kQueries, tile.scores,
                         kQueries, false},
                        part);
              if (!plain)
                apply<A, isa.bytes>(
                    p.rule, h,
                    {tile.scores, tile.gains, rows, columns, kQueries, i0 + i + s.S - s.T - j0, -1, A(s.scale)});
              mask_tile<A, isa.bytes>(s, tile.scores, i0 + i, columns, j0, n_keys, rows);
              P::scores({rows, columns, lines, v_rows, width, 1, queries.dout_columns + line, kQueries, tile.dp,
                         kQueries, false},
                        part);
              softmax<isa>(p, tile, queries.lse + at + i, queries.delta + at + i, b * s.H + h, i0 + i, columns, i, j0,
                           rows, unit);
              const E* ds = P::pairs ? tile.ds_over : tile.ds;
              P::product({part, padded, P::packed(sees), ds + i, 1, kBlock, k_over, padded,
                          queries.dq + (at + i) * padded, padded, true});
            }
            const simd::Vector<A, isa.bytes> zeros[4] = {};
            for (int64_t r = rows; r < round_up(seen, 4); r += 4)  // keys that only later queries of the block see
              for (int64_t lane = i; lane < i + columns; lane += W) put<isa>(tile, zeros, zeros, r, lane);
          }
          // Half of the keys at a time: on the diagonal the second half is seen by fewer queries.
          for (int64_t r = 0; r < seen; r += kKeys / 2) {
            const int64_t count = std::min(seen - r, kKeys / 2), pitch = kBlock / P::depth;
            const int64_t from = std::max<int64_t>(0, queries_of(s, j0 + r, j0 + r + count, kQueries).first - i0);
            const int64_t line = (at + from) / P::depth * padded, place = r * pitch + from / P::depth;
            const int64_t deep = P::packed(n - from);
            P::product({count, padded, deep, tile.p + place, pitch, 1, queries.dout_rows + line, padded,
                        dv + (j + r) * padded, padded, true});
            P::product({count, padded, deep, tile.ds + place, pitch, 1, queries.q_rows + line, padded,
                        dk + (j + r) * padded, padded, true});
          }
        }
      }
      if (p.cut.keys == 1) {
        T* dq = static_cast<T*>(p.dq) + (b * s.T * s.H + h) * D;
        for (int64_t i = queries_of_run.first; i < queries_of_run.last; ++i)  // queries that see nothing
          if (i < all.first || i >= all.last) std::fill_n(dq + i * s.H * D, D, T{});
        write_rows<isa>(dq + all.first * s.H * D, s.H * D, queries.dq, n_all, D, A(s.scale));
      } else {
        A* dq = static_cast<A*>(p.dq_shares) + (((key_run * s.B + b) * s.H + h) * s.T + all.first) * D;
        write_rows<isa>(dq, D, queries.dq, n_all, D, A(1));
      }
    }
    if (p.cut.queries == 1) {
      const int64_t at = ((b * s.S + begin) * s.H_kv + h_kv) * D, stride = s.H_kv * D;
      write_rows<isa>(static_cast<T*>(p.dk) + at, stride, dk, n_keys_all, D, A(s.scale));
      write_rows<isa>(static_cast<T*>(p.dv) + at, stride, dv, n_keys_all, D, A(s.dropout_scale));
    } else {
      const int64_t at = (((query_run * s.B + b) * s.H_kv + h_kv) * s.S + begin) * D;
      write_rows<isa>(static_cast<A*>(p.dk_shares) + at, D, dk, n_keys_all, D, A(1));
      write_rows<isa>(static_cast<A*>(p.dv_shares) + at, D, dv, n_keys_all, D, A(1));
    }
  }

  template <simd::Isa isa, class To>
  static ALWAYS_INLINE void write_rows(To* to, int64_t stride, const A* from, int64_t n, int64_t D, A factor) {
    constexpr int W = simd::lanes<A, isa.bytes>;
    const int64_t padded = round_up(D, W);
    for (int64_t r = 0; r < n; ++r)
      for (int64_t d = 0; d < D; d += W)
        simd::store_part<isa.bytes>(to + r * stride + d, simd::load<isa.bytes>(from + r * padded + d) * factor, D - d);
  }
};

// Adds up the shares of a block of kQueries rows, from `begin` on, of one head's dq or dk and dv; in order, and those alone of
// runs that met: the others were never written.
template <class T>
struct AddShares {
  using A = accumulate_t<T>;

  // `stride`: from row to row of the result; `size`: from one run's shares to the next.
  template <simd::Isa isa>
  static ALWAYS_INLINE void add(T* to, int64_t stride, const A* share, int64_t size, Range runs, int64_t rows,
                                int64_t D, A factor) {
    constexpr int W = simd::lanes<A, isa.bytes>;
    for (int64_t r = 0; r < rows; ++r, to += stride, share += D)
      for (int64_t d = 0; d < D; d += W) {
        simd::Vector<A, isa.bytes> sum = {};
        for (int64_t run = runs.first; run < runs.last; ++run)
          sum += simd::load_part<isa.bytes>(share + run * size + d, D - d);
        simd::store_part<isa.bytes>(to + d, sum * factor, D - d);
      }
  }

  template <simd::Isa isa>
  static ALWAYS_INLINE void run(const AttentionBackwardParams* p, bool of_dq, int64_t head, int64_t begin) {
    const AttentionShape& s = p->shape;
    const int64_t H = of_dq ? s.H : s.H_kv, n = of_dq ? s.T : s.S, D = s.D, size = s.B * H * n * D;
    const Range rows{begin, std::min(n, begin + kQueries)};
    Range keys{}, runs{of_dq ? p->cut.keys : p->cut.queries, 0};
    for (int64_t i = 0; !of_dq && keys.last <= begin; ++i) keys = run_of(s.S, p->cut.keys, i);
    for (int64_t i = 0, all = runs.first; i < all; ++i) {
      const Range met =
          of_dq ? meeting(s, run_of(s.S, p->cut.keys, i), rows) : meeting(s, keys, run_of(s.T, p->cut.queries, i));
      if (met.first < met.last) runs = {std::min(runs.first, i), i + 1};
    }
    const int64_t from = (head * n + begin) * D, to = ((head / H * n + begin) * H + head % H) * D, stride = H * D;
    const auto sum = [&](void* result, const void* shares, A factor) {
      add<isa>(static_cast<T*>(result) + to, stride, static_cast<const A*>(shares) + from, size, runs,
               rows.last - begin, D, factor);
    };
    if (of_dq) return sum(p->dq, p->dq_shares, A(s.scale));
    sum(p->dk, p->dk_shares, A(s.scale));
    sum(p->dv, p->dv_shares, A(s.dropout_scale));
  }
};

}  // namespace

void attention_backward_cpu(const AttentionBackwardParams& p) {
  const AttentionShape& s = p.shape;
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t heads_kv = s.B * s.H_kv;
    parallel_tasks(heads_kv * p.cut.keys * p.cut.queries, worth_waking(s), [&](int64_t task) {
      const int64_t head = task % heads_kv, part = task / heads_kv;
      call_for<T, Backward<T>>(&p, head / s.H_kv, head % s.H_kv, part / p.cut.queries, part % p.cut.queries);
    });
    const int64_t blocks = (s.T + kQueries - 1) / kQueries, blocks_kv = (s.S + kQueries - 1) / kQueries;
    const int64_t of_dq = p.cut.keys > 1 ? s.B * s.H * blocks : 0,
                  of_dkv = p.cut.queries > 1 ? heads_kv * blocks_kv : 0;
    parallel_tasks(of_dq + of_dkv, worth_waking(s), [&](int64_t task) {
      const bool is_dq = task < of_dq;
      const int64_t each = is_dq ? blocks : blocks_kv, at = is_dq ? task : task - of_dq;
      simd::call<WithoutDots<AddShares<T>>>(&p, is_dq, at / each, at % each * kQueries);
    });
  });
}

}  // namespace minigpt
