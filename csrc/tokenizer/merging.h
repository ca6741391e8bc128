// The heart of BPE: of all neighbours that may merge, the pair of the lowest rank does, the leftmost where several have
// it; again, until none may.
#pragma once

#include "vocabulary.h"

namespace minigpt::tokenizer {

// Merges ids[from ...] in place, and cuts the buffer where they end now. O(n log n) for n ids.
// Throws std::length_error where there are 2^32 - 1 or more.
void merge(const Vocabulary& vocabulary, IdBuffer& ids, size_t from);

}  // namespace minigpt::tokenizer
