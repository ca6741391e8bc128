#include "merging.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <stdexcept>
#include <vector>

namespace minigpt::tokenizer {

namespace {

constexpr size_t SHORT = 48;  // up to here scanning all pairs for each merge is faster than a heap

// O(n^2), but on a few dozens of numbers that lie side by side. Returns how many ids are left.
size_t merge_short(const Vocabulary& vocabulary, Id* ids, size_t count) {
  Merge pairs[SHORT];  // pairs[i]: of ids[i] and ids[i + 1]
  for (size_t i = 0; i + 1 < count; ++i) pairs[i] = vocabulary.merge(ids[i], ids[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) best = pairs[i].rank < pairs[best].rank ? i : best;
    if (pairs[best].rank == Merge::NEVER) break;
    ids[best] = pairs[best].id;
    std::copy(ids + best + 2, ids + count, ids + best + 1);
    std::copy(pairs + best + 1, pairs + count - 1, pairs + best);
    --count;
    if (best > 0) pairs[best - 1] = vocabulary.merge(ids[best - 1], ids[best]);
    if (best + 1 < count) pairs[best] = vocabulary.merge(ids[best], ids[best + 1]);
  }
  return count;
}

// O(n log n): the symbols as a linked list, and a heap of the pairs that may merge. A merge changes the pairs on both of
// its sides and adds them to the heap; what the heap still has of the old ones is told by their rank, and passed over.
class LongMerge {
 public:
  LongMerge(const Vocabulary& vocabulary, const Id* ids, size_t count) : vocabulary_(vocabulary), symbols_(count) {
    for (uint32_t i = 0; i < count; ++i) symbols_[i] = {ids[i], i - 1, i + 1 < count ? i + 1 : NOWHERE, {}};
    std::vector<uint64_t> entries;
    for (uint32_t i = 0; i < count; ++i) {
      if (look_at_pair(i)) entries.push_back(entry(i));
    }
    heap_ = Heap(std::greater<>(), std::move(entries));  // O(n)
  }

  // Writes what is left to ids, and returns how many that is.
  size_t run(Id* ids) {
    while (!heap_.empty()) {
      const uint32_t left = static_cast<uint32_t>(heap_.top()), rank = heap_.top() >> 32;
      heap_.pop();
      if (symbols_[left].with_next.rank == rank) merge_with_next(left);
    }
    size_t count = 0;
    for (uint32_t i = 0; i != NOWHERE; i = symbols_[i].next) ids[count++] = symbols_[i].id;
    return count;
  }

 private:
  static constexpr uint32_t NOWHERE = UINT32_MAX;  // also what is before the first: 0 - 1

  struct Symbol {
    Id id;
    uint32_t previous, next;
    Merge with_next;
  };

  using Heap = std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>>;

  // The lowest rank is on top of the heap, and of one rank the leftmost.
  uint64_t entry(uint32_t left) const { return static_cast<uint64_t>(symbols_[left].with_next.rank) << 32 | left; }

  bool look_at_pair(uint32_t left) {
    Symbol& symbol = symbols_[left];
    symbol.with_next = symbol.next == NOWHERE ? Merge{} : vocabulary_.merge(symbol.id, symbols_[symbol.next].id);
    return symbol.with_next.rank != Merge::NEVER;
  }

  void merge_with_next(uint32_t left) {
    Symbol& symbol = symbols_[left];
    Symbol& gone = symbols_[symbol.next];
    symbol.id = symbol.with_next.id;
    symbol.next = gone.next;
    gone.with_next = {};
    if (symbol.next != NOWHERE) symbols_[symbol.next].previous = left;
    if (symbol.previous != NOWHERE && look_at_pair(symbol.previous)) heap_.push(entry(symbol.previous));
    if (look_at_pair(left)) heap_.push(entry(left));
  }

  const Vocabulary& vocabulary_;
  std::vector<Symbol> symbols_;
  Heap heap_;
};

}  // namespace

void merge(const Vocabulary& vocabulary, IdBuffer& ids, size_t from) {
  const size_t count = ids.size() - from;
  if (count >= UINT32_MAX) throw std::length_error("a piece of the text has 2^32 - 1 symbols or more");
  Id* piece = ids.data() + from;
  const size_t left =
      count <= SHORT ? merge_short(vocabulary, piece, count) : LongMerge(vocabulary, piece, count).run(piece);
  ids.shrink_to(from + left);
}

}  // namespace minigpt::tokenizer
