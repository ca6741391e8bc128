// Special tokens: found in a text before anything else is done to it.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "vocabulary.h"

namespace minigpt::tokenizer {

class Specials {
 public:
  // Which of the special tokens count, by their place among the sorted names.
  using Allowed = std::vector<bool>;

  struct Match {
    size_t begin, end;
    Id id;  // -1: there is none, and begin == end == the text's length
  };

  // Throws std::invalid_argument where a name is empty or twice, or an id is negative, twice, or in `tokens` that of
  // other bytes.
  Specials(std::vector<std::pair<std::string, Id>> names, const Vocabulary& vocabulary);

  Allowed all() const { return Allowed(names_.size(), true); }
  Allowed none() const { return Allowed(names_.size(), false); }

  // Throws std::invalid_argument where one of the names is no special token.
  Allowed only(const std::vector<std::string>& names) const;

  // The first allowed special token in text[from ...]; the longest, where several begin there.
  Match find(std::string_view text, size_t from, const Allowed& allowed) const;

  // The name of a special token, or null.
  const std::string* name_of(Id id) const;

 private:
  Match longest_at(std::string_view text, size_t at, const Allowed& allowed) const;

  std::vector<std::pair<std::string, Id>> names_;  // sorted
  std::array<bool, 256> begins_one_{};             // by byte
  std::string first_bytes_;
  std::unordered_map<Id, size_t> by_id_;
};

}  // namespace minigpt::tokenizer
