// Training BPE: the pair of neighbours that is there most often becomes a token; again, until there are enough.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pretokenizer.h"
#include "vocabulary.h"

namespace minigpt::tokenizer {

struct Trained {
  std::vector<std::string> tokens;  // the 256 bytes, then what merges made, in that order
  std::vector<std::pair<Id, Id>> merges;
};

// The same tokens and merges as BpeTrainer of the library `tokenizers` with the byte-level alphabet. Among pairs of the
// same count the one of the lowest ids comes first, where bytes are numbered as in GPT-2: visible characters of Latin-1
// before the others. Stops at vocabulary_size tokens, or where no pair is there min_frequency times.
// Throws std::invalid_argument for a vocabulary_size below 256.
Trained train(const std::vector<std::string_view>& texts, size_t vocabulary_size, Pattern pattern, int n_threads,
              uint64_t min_frequency);

}  // namespace minigpt::tokenizer
