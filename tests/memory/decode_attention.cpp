#include "decode_attention/decode_attention.h"

#include "decode_attention/decode_splits.h"
#include "kv_append/kv_append.h"
#include "memory_check.h"

namespace memory_check {
namespace {

struct Case {
  std::vector<int32_t> lens;  // with the new tokens
  std::vector<int32_t> news;  // new tokens of each; all the same: without query_start
  int64_t H, H_kv, D, block_size;
  int64_t window = 0;
  double softcap = 0;
  bool alibi = false;
};

const Case kCases[] = {
    {{1}, {1}, 1, 1, 1, 1},
    {{1}, {1}, 1, 1, 256, 16},
    {{17, 1, 33}, {1, 1, 1}, 2, 2, 33, 16},
    {{70}, {1}, 12, 3, 16, 16, 5},
    {{300, 9}, {1, 1}, 4, 2, 65, 16},  // splits of few queries
    {{777}, {1}, 1, 1, 7, 5, 0, 3, true},
    {{601}, {5}, 2, 1, 31, 64},  // splits of many
    {{70, 33}, {3, 3}, 4, 1, 24, 7, 0, 2},
    {{70, 0, 9}, {3, 0, 2}, 4, 2, 17, 16, 4, 0, true},
    {{129}, {67}, 3, 1, 64, 16},  // more than a chunk of queries
};

void check(const Case& c, DType type, bool int8) {
  const int64_t B = int64_t(c.lens.size());
  const bool ragged = std::any_of(c.news.begin(), c.news.end(), [&](int32_t n) { return n != c.news[0]; });
  say("decode_attention", name_of(type), int8 ? "int8 cache" : "", "B", B, "length", c.lens[0], "new", c.news[0], "H",
      c.H, "H_kv", c.H_kv, "D", c.D, "block_size", c.block_size, "window", c.window, "softcap", c.softcap, "alibi",
      c.alibi);
  int64_t n_blocks = 0, max_blocks = 0;
  for (int32_t length : c.lens) {
    const int64_t blocks = (length + c.block_size - 1) / c.block_size;
    n_blocks += blocks, max_blocks = std::max(max_blocks, blocks);
  }
  // The blocks from the last to the first; what no token needs points nowhere.
  std::vector<int32_t> table(B * max_blocks, 1 << 30), zeros(B, 0), before, start{0};
  for (int64_t b = 0, next = n_blocks; b < B; ++b) {
    for (int64_t i = 0; i * c.block_size < c.lens[b]; ++i) table[b * max_blocks + i] = int32_t(--next);
    start.push_back(start.back() + c.news[b]);
    before.push_back(c.lens[b] - c.news[b]);
  }
  const auto block_table = copy_of(table), lens = copy_of(c.lens), old_lens = copy_of(before),
             query_start = copy_of(start), none = copy_of(zeros);
  const auto layout = [&](const std::vector<int32_t>& news, const int32_t* seq_lens, const int32_t* starts) {
    return PagedLayout{.n_blocks = n_blocks,
                       .block_size = c.block_size,
                       .H_kv = c.H_kv,
                       .D = c.D,
                       .B = B,
                       .max_blocks = max_blocks,
                       .block_table = block_table.get(),
                       .seq_lens = seq_lens,
                       .query_start = starts,
                       .T = starts ? starts[B] : int64_t(news[0])};
  };
  const int64_t token = c.H_kv * c.D, heads = n_blocks * c.block_size * c.H_kv;
  const CacheBlock k_cache(type, int8, heads, c.D), v_cache(type, int8, heads, c.D);
  const auto append = [&](const PagedLayout& to) {
    const int64_t n = new_token_rows(to) * token;
    const Block k = Block::filled(type, n, 6), v = Block::filled(type, n, 7);
    kv_append_cpu({.layout = to,
                   .element_size = size_of(type),
                   .k = k,
                   .v = v,
                   .k_token_stride = token,
                   .k_head_stride = c.D,
                   .v_token_stride = token,
                   .v_head_stride = c.D,
                   .k_batch_stride = to.T * token,
                   .v_batch_stride = to.T * token,
                   .k_cache = k_cache.values(),
                   .v_cache = v_cache.values(),
                   .k_scales = k_cache.scales(),
                   .v_scales = v_cache.scales(),
                   .dtype = type});
  };
  std::vector<int32_t> old_start{0};
  for (int32_t n : before) old_start.push_back(old_start.back() + n);
  const auto old_starts = copy_of(old_start);
  append(layout(before, none.get(), old_starts.get()));
  const int32_t* const starts = ragged ? query_start.get() : nullptr;
  append(layout(c.news, old_lens.get(), starts));

  const PagedLayout now = layout(c.news, lens.get(), starts);
  const int64_t rows = new_token_rows(now), q_width = c.H * c.D;
  const DType wide = accumulation(type);
  const DecodeSplits splits = decode_splits_cpu(now, c.H);
  const int64_t parts = splits.count > 1 ? rows * c.H * splits.count : 0;
  const Block q = Block::filled(type, rows * q_width, 8), slopes = Block::filled(wide, c.H, 9),
              out(type, rows * q_width), partial_out(wide, parts * c.D), partial_stats(wide, parts * 2);
  decode_attention_cpu({.layout = now,
                        .dtype = type,
                        .H = c.H,
                        .scale = 0.3,
                        .rule = {c.softcap, c.alibi ? static_cast<void*>(slopes) : nullptr},
                        .window = c.window,
                        .q = q,
                        .q_batch_stride = now.T * q_width,
                        .q_token_stride = q_width,
                        .q_head_stride = c.D,
                        .k_cache = k_cache.values(),
                        .v_cache = v_cache.values(),
                        .k_scales = k_cache.scales(),
                        .v_scales = v_cache.scales(),
                        .out = out,
                        .partial_out = partial_out,
                        .partial_stats = partial_stats,
                        .splits = splits.count,
                        .keys_per_split = splits.keys});
  out.check("out");
}

}  // namespace

void check_decode_attention() {
  for (const auto [type, int8] : kCaches)
    for (const Case& c : kCases) check(c, type, int8);
}

}  // namespace memory_check
