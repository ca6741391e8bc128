#include "specials.h"

#include <algorithm>
#include <stdexcept>

#include "text.h"

namespace minigpt::tokenizer {

Specials::Specials(std::vector<std::pair<std::string, Id>> names, const Vocabulary& vocabulary)
    : names_(std::move(names)) {
  std::sort(names_.begin(), names_.end());
  std::unordered_map<std::string_view, Id> seen;
  for (size_t i = 0; i < names_.size(); ++i) {
    const auto& [name, id] = names_[i];
    if (name.empty()) throw std::invalid_argument("specials: a name is empty");
    if (id < 0) throw std::invalid_argument("specials: the id of " + quote(name) + " is " + std::to_string(id));
    if (!seen.emplace(name, id).second) throw std::invalid_argument("specials: " + quote(name) + " is there twice");
    if (const auto [other, is_new] = by_id_.emplace(id, i); !is_new) {
      throw std::invalid_argument("specials: " + quote(names_[other->second].first) + " and " + quote(name) +
                                  " have the same id, " + std::to_string(id));
    }
    if (vocabulary.has(id) && vocabulary.token(id) != name) {
      throw std::invalid_argument("specials: " + quote(name) + " has the id " + std::to_string(id) +
                                  ", which is the token " + quote(vocabulary.token(id)));
    }
    begins_one_[static_cast<Byte>(name[0])] = true;
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (begins_one_[byte]) first_bytes_ += static_cast<char>(byte);
  }
}

Specials::Allowed Specials::only(const std::vector<std::string>& names) const {
  Allowed allowed = none();
  for (const std::string& name : names) {
    const auto found = std::find_if(names_.begin(), names_.end(), [&](const auto& pair) { return pair.first == name; });
    if (found == names_.end()) throw std::invalid_argument("allowed: " + quote(name) + " is no special token");
    allowed[found - names_.begin()] = true;
  }
  return allowed;
}

Specials::Match Specials::find(std::string_view text, size_t from, const Allowed& allowed) const {
  const auto next_candidate = [&](size_t at) {
    if (first_bytes_.size() == 1) return std::min(text.find(first_bytes_[0], at), text.size());  // as fast as memchr
    while (at < text.size() && !begins_one_[static_cast<Byte>(text[at])]) ++at;
    return at;
  };
  if (first_bytes_.empty()) from = text.size();
  for (size_t at = next_candidate(from); at < text.size(); at = next_candidate(at + 1)) {
    if (const Match match = longest_at(text, at, allowed); match.id >= 0) return match;
  }
  return {text.size(), text.size(), -1};
}

// names_[low ... high - 1] are those whose first `length` bytes are in the text at `at`; sorted, they lie together.
Specials::Match Specials::longest_at(std::string_view text, size_t at, const Allowed& allowed) const {
  Match longest{at, at, -1};
  size_t low = 0, high = names_.size();
  for (size_t length = 0; low < high; ++length) {
    if (names_[low].first.size() == length) {
      if (allowed[low]) longest = {at, at + length, names_[low].second};
      ++low;
    }
    if (at + length == text.size()) break;
    const auto first = names_.begin() + low, last = names_.begin() + high;
    const auto below = [&](const auto& name) { return Byte(name.first[length]) < Byte(text[at + length]); };
    const auto not_above = [&](const auto& name) { return Byte(name.first[length]) <= Byte(text[at + length]); };
    low = std::partition_point(first, last, below) - names_.begin();
    high = std::partition_point(first, last, not_above) - names_.begin();
  }
  return longest;
}

const std::string* Specials::name_of(Id id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &names_[found->second].first;
}

}  // namespace minigpt::tokenizer
