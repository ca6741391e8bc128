// How a long cache is cut into runs of keys, so that there is work for many threads or blocks also where sequences and heads
// are few. It depends on the shapes (on a CPU on the lengths too) alone, never on the threads: results repeat.
#pragma once
#include <algorithm>

#include "../kv_append/kv_append.h"

namespace minigpt {

struct DecodeSplits {
  int64_t count, keys;
};

inline constexpr int64_t kMostDecodeSplitsCpu = 64;

// `tasks` there are without a cut; `most` of them are wanted, each of at least least_keys.
inline DecodeSplits decode_splits(int64_t longest, int64_t tasks, int64_t most, int64_t least_keys) {
  const int64_t wanted = std::max<int64_t>(1, std::min(most / std::max<int64_t>(1, tasks), longest / least_keys));
  const int64_t keys = std::max<int64_t>(1, (longest + wanted - 1) / wanted);
  return {std::max<int64_t>(1, (longest + keys - 1) / keys), keys};
}

// How a CPU shares a batch besides: one query a key/value head, or few of them, cost what reading the cache costs, and a
// task takes all heads; many are cut by heads and into chunks.
struct DecodeCut {
  int64_t head_ranges, query_chunks;
};
inline constexpr int64_t kFewQueries = 8, kManyQueries = 64;

inline DecodeCut decode_cut_cpu(const PagedLayout& l, int64_t H) {
  int64_t rows = l.query_start ? 0 : l.T;
  for (int64_t b = 0; l.query_start && b < l.B; ++b)
    rows = std::max<int64_t>(rows, l.query_start[b + 1] - l.query_start[b]);
  const int64_t queries = rows * (H / l.H_kv);
  if (queries <= kFewQueries) return {1, 1};
  return {l.H_kv, (queries + kManyQueries - 1) / kManyQueries};
}

inline DecodeSplits decode_splits_cpu(const PagedLayout& l, int64_t H) {
  const DecodeCut cut = decode_cut_cpu(l, H);
  int64_t longest = 0;
  for (int64_t b = 0; b < l.B; ++b) longest = std::max<int64_t>(longest, l.seq_lens[b]);
  return decode_splits(longest, l.B * cut.head_ranges * cut.query_chunks, kMostDecodeSplitsCpu,
                       cut.head_ranges == 1 ? 128 : 256);
}

// A GPU's lengths are on the device: what the table could hold counts.
inline DecodeSplits decode_splits_cuda(const PagedLayout& l) {
  return decode_splits(l.max_blocks * l.block_size, l.B * l.H_kv, 512, 256);
}

}  // namespace minigpt
