#include "specials.h"

#include <algorithm>
#include <stdexcept>

#include "text.h"

namespace minigpt::tokenizer {

Specials::Specials(std::vector<std::pair<std::string, Id>> names, const Vocabulary& vocabulary)
    : names_(std::move(names)) {
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
    by_first_byte_[static_cast<Byte>(name[0])].push_back(i);
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    auto& group = by_first_byte_[byte];
    std::sort(group.begin(), group.end(),
              [&](size_t a, size_t b) { return names_[a].first.size() > names_[b].first.size(); });
    if (!group.empty()) first_bytes_ += static_cast<char>(byte);
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
    while (at < text.size() && by_first_byte_[static_cast<Byte>(text[at])].empty()) ++at;
    return at;
  };
  if (first_bytes_.empty()) from = text.size();
  for (size_t at = next_candidate(from); at < text.size(); at = next_candidate(at + 1)) {
    for (size_t i : by_first_byte_[static_cast<Byte>(text[at])]) {
      const auto& [name, id] = names_[i];
      if (allowed[i] && text.substr(at, name.size()) == name) return {at, at + name.size(), id};
    }
  }
  return {text.size(), text.size(), -1};
}

const std::string* Specials::name_of(Id id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &names_[found->second].first;
}

}  // namespace minigpt::tokenizer
