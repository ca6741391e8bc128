// How often each piece is there in texts.
#pragma once

#include <string_view>
#include <vector>

#include "pretokenizer.h"

namespace minigpt::tokenizer {

struct WordCount {
  std::string_view word;  // points into a text
  uint64_t hash;
  uint64_t count;
};

// Pieces with their counts, in no particular order, by n_threads threads.
std::vector<WordCount> count_words(const std::vector<std::string_view>& texts, Pattern pattern, int n_threads);

}  // namespace minigpt::tokenizer
