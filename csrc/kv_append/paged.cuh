// Finding one's way in a paged cache, on the device. Tables are not checked before a launch (that would need a
// synchronisation), so what is out of range is reported as absent here, and never used as an address.
#pragma once
#include "../common/device.cuh"
#include "kv_append.h"

namespace minigpt {

// Packed row r of the new tokens is token i of the `count` new ones of sequence b; count 0: it belongs to no sequence.
struct NewToken {
  int64_t b, i, count;
};

DEVICE NewToken find_new_token(const PagedLayout& c, int64_t r) {
  if (!c.query_start) return {r / c.T, r % c.T, c.T};
  if (c.B == 0) return {0, 0, 0};
  int64_t b = 0, above = c.B;  // the last sequence that starts at r or before: those after it start above r
  while (above - b > 1) {
    const int64_t middle = (b + above) / 2;
    (c.query_start[middle] <= r ? b : above) = middle;
  }
  const int64_t start = c.query_start[b], end = c.query_start[b + 1];
  if (start < 0 || r < start || r >= end || end > c.T) return {0, 0, 0};
  return {b, r - start, end - start};
}

// The row of the cache, seen as (n_blocks * block_size, H_kv, D), that holds a position of sequence b; -1 if none does.
DEVICE int64_t cache_row(const PagedLayout& c, int64_t b, int64_t position) {
  const int64_t slot = position / c.block_size;
  if (position < 0 || slot >= c.max_blocks) return -1;
  const int64_t block = c.block_table[b * c.max_blocks + slot];
  return block < 0 || block >= c.n_blocks ? -1 : block * c.block_size + position % c.block_size;
}

}  // namespace minigpt
