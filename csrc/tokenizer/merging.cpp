#include "merging.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <stdexcept>

namespace minigpt::tokenizer {

constexpr uint32_t NOWHERE = UINT32_MAX;

void Merger::merge(IdBuffer& ids, size_t from) {
  const size_t count = ids.size() - from;
  if (count >= NOWHERE) throw std::length_error("a piece of the text has 2^32 symbols or more");
  Id* symbols = ids.data() + from;
  ids.shrink_to(from + (count <= SHORT ? merge_short(symbols, count) : merge_long(symbols, count)));
}

// O(n^2), but on a few dozens of numbers that lie side by side.
size_t Merger::merge_short(Id* ids, size_t count) {
  Merge pairs[SHORT];  // pairs[i]: of ids[i] and ids[i + 1]
  for (size_t i = 0; i + 1 < count; ++i) pairs[i] = vocabulary_.merge(ids[i], ids[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) best = pairs[i].rank < pairs[best].rank ? i : best;
    if (pairs[best].rank == Merge::NEVER) break;
    ids[best] = pairs[best].id;
    --count;
    std::copy(ids + best + 2, ids + count + 1, ids + best + 1);
    std::copy(pairs + best + 1, pairs + count, pairs + best);
    if (best > 0) pairs[best - 1] = vocabulary_.merge(ids[best - 1], ids[best]);
    if (best + 1 < count) pairs[best] = vocabulary_.merge(ids[best], ids[best + 1]);
  }
  return count;
}

// A linked list of the symbols, and a heap of the pairs that may merge. An entry of the heap holds if its pair still has
// that rank; otherwise a merge beside it made it void, and put the new pair in. Each merge adds two entries at most.
size_t Merger::merge_long(Id* ids, size_t count) {
  nodes_.resize(count);
  heap_.clear();
  for (uint32_t i = 0; i < count; ++i) nodes_[i] = {ids[i], i - 1, i + 1 < count ? i + 1 : NOWHERE, {}};
  for (uint32_t i = 0; i + 1 < count; ++i) look_at_pair(i);
  std::make_heap(heap_.begin(), heap_.end(), std::greater<>());
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
    const uint64_t entry = heap_.back();
    heap_.pop_back();
    const uint32_t left = static_cast<uint32_t>(entry);
    Node& node = nodes_[left];
    if (node.with_next.rank != entry >> 32) continue;
    Node& right = nodes_[node.next];
    node.id = node.with_next.id;
    node.next = right.next;
    right.with_next = {};
    if (node.next != NOWHERE) nodes_[node.next].previous = left;
    const size_t before = heap_.size();
    if (node.previous != NOWHERE) look_at_pair(node.previous);
    look_at_pair(left);
    for (size_t size = before + 1; size <= heap_.size(); ++size) {
      std::push_heap(heap_.begin(), heap_.begin() + size, std::greater<>());
    }
  }
  size_t kept = 0;
  for (uint32_t i = 0; i != NOWHERE; i = nodes_[i].next) ids[kept++] = nodes_[i].id;
  return kept;
}

void Merger::look_at_pair(uint32_t left) {
  Node& node = nodes_[left];
  node.with_next = node.next == NOWHERE ? Merge{} : vocabulary_.merge(node.id, nodes_[node.next].id);
  if (node.with_next.rank != Merge::NEVER) heap_.push_back(static_cast<uint64_t>(node.with_next.rank) << 32 | left);
}

}  // namespace minigpt::tokenizer
