// The heart of BPE: of all neighbours that may merge, the pair of the lowest rank does, the leftmost where several have
// it; again, until none may.
#pragma once

#include <vector>

#include "id_buffer.h"
#include "vocabulary.h"

namespace minigpt::tokenizer {

class Merger {
 public:
  explicit Merger(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

  // Merges ids[from ...] in place, and cuts the buffer where they end now. O(n log n) for n ids.
  // Throws std::length_error above 2^32 - 1 ids.
  void merge(IdBuffer& ids, size_t from);

 private:
  static constexpr size_t SHORT = 48;  // up to here scanning all pairs for each merge is faster than a heap

  struct Node {
    Id id;
    uint32_t previous, next;
    Merge with_next;
  };

  size_t merge_short(Id* ids, size_t count);
  size_t merge_long(Id* ids, size_t count);
  void look_at_pair(uint32_t left);

  const Vocabulary& vocabulary_;
  std::vector<Node> nodes_;     // kept between calls, as the heap is
  std::vector<uint64_t> heap_;  // of rank << 32 | position, the least on top
};

}  // namespace minigpt::tokenizer
