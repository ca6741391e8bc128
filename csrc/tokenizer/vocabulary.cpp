#include "vocabulary.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "text.h"

namespace minigpt::tokenizer {

Vocabulary::Vocabulary(std::vector<std::optional<std::string>> tokens, const std::vector<std::pair<Id, Id>>& merges,
                       Alphabet alphabet)
    : tokens_(std::move(tokens)), alphabet_(alphabet) {
  if (tokens_.size() > std::numeric_limits<Id>::max()) {
    throw std::invalid_argument("tokens: there are " + std::to_string(tokens_.size()) + ", and ids have 31 bits");
  }
  index_tokens();
  find_byte_tokens();
  index_merges(merges);
}

void Vocabulary::index_tokens() {
  by_bytes_.assign(slots_for(tokens_.size()), {});
  const size_t mask = by_bytes_.size() - 1;
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (!tokens_[id]) continue;
    const std::string& token = *tokens_[id];
    if (token.empty()) throw std::invalid_argument("tokens[" + std::to_string(id) + "] is empty");
    if (alphabet_ == Alphabet::characters_bytes && !is_utf8(token)) {
      throw std::invalid_argument("tokens[" + std::to_string(id) + "] = " + quote(token) +
                                  " is not UTF-8, which the alphabet characters+bytes asks for");
    }
    if (const Id other = find(token); other >= 0) {
      throw std::invalid_argument("tokens[" + std::to_string(other) + "] and tokens[" + std::to_string(id) +
                                  "] are the same: " + quote(token));
    }
    const uint64_t hash = hash_bytes(token);
    size_t slot = hash & mask;
    while (by_bytes_[slot].id >= 0) slot = (slot + 1) & mask;
    by_bytes_[slot] = {static_cast<uint32_t>(hash >> 32), static_cast<Id>(id)};
  }
}

Id Vocabulary::find(std::string_view bytes) const {
  const size_t mask = by_bytes_.size() - 1;
  const uint64_t hash = hash_bytes(bytes);
  for (size_t slot = hash & mask; by_bytes_[slot].id >= 0; slot = (slot + 1) & mask) {
    const auto [upper, id] = by_bytes_[slot];
    if (upper == hash >> 32 && *tokens_[id] == bytes) return id;
  }
  return -1;
}

void Vocabulary::find_byte_tokens() {
  for (int byte = 0; byte < 256; ++byte) {
    const std::string token = alphabet_ == Alphabet::bytes ? std::string(1, static_cast<char>(byte)) : byte_token(byte);
    byte_ids_[byte] = find(token);
    if (byte_ids_[byte] < 0) {
      throw std::invalid_argument("tokens: the byte " + std::to_string(byte) + " has none; there must be " +
                                  quote(token));
    }
  }
}

void Vocabulary::index_merges(const std::vector<std::pair<Id, Id>>& merges) {
  if (merges.size() >= Merge::NEVER) throw std::invalid_argument("merges: too many, ranks have 32 bits");
  merges_.assign(slots_for(merges.size()), {});
  merge_mask_ = merges_.size() - 1;
  perhaps_.assign(std::max<size_t>(merges_.size() / 16, 2), 0);
  perhaps_shift_ = 64 - std::countr_zero(perhaps_.size());
  joins_.assign(slots_for(merges.size()), EMPTY);
  for (uint32_t rank = 0; rank < merges.size(); ++rank) {
    const auto [left, right] = merges[rank];
    const std::string name = "merges[" + std::to_string(rank) + "]";
    for (Id id : {left, right}) {
      if (!has(id)) {
        throw std::invalid_argument(name + ": there is no token " + std::to_string(id) + "; there are " +
                                    std::to_string(tokens_.size()) + " ids");
      }
    }
    const Id merged = find(token(left) + token(right));
    if (merged < 0) {
      throw std::invalid_argument(name + ": " + quote(token(left)) + " + " + quote(token(right)) + " is no token");
    }
    const uint64_t pair = key(left, right), hash = mix(pair, 0);
    size_t slot = hash & merge_mask_;
    for (; merges_[slot].pair != EMPTY; slot = (slot + 1) & merge_mask_) {
      if (merges_[slot].pair == pair) {
        throw std::invalid_argument(name + ": " + quote(token(left)) + " + " + quote(token(right)) +
                                    " is there before, as merges[" + std::to_string(merges_[slot].merge.rank) + "]");
      }
    }
    merges_[slot] = {pair, {rank, merged}};
    perhaps_[hash >> perhaps_shift_] |= uint64_t{1} << (hash >> 32 & 63);
    note_join(left, right, merged);
  }
}

void Vocabulary::note_join(Id left, Id right, Id merged) {
  // "<0x20>" may stand for a byte as well as for six characters: where merges touch such a token, nothing is known.
  for (Id id : {left, right, merged}) {
    joins_anything_ |= alphabet_ == Alphabet::characters_bytes && byte_of_token(token(id)) >= 0;
  }
  const uint64_t pair = key(last_letter(token(left)), first_letter(token(right)));
  const size_t mask = joins_.size() - 1;
  size_t slot = mix(pair, 0) & mask;
  while (joins_[slot] != EMPTY && joins_[slot] != pair) slot = (slot + 1) & mask;
  joins_[slot] = pair;
}

uint32_t Vocabulary::first_letter(std::string_view bytes) const {
  const auto* p = reinterpret_cast<const Byte*>(bytes.data());
  return alphabet_ == Alphabet::bytes ? *p : character_at(p, p + bytes.size()).code;
}

uint32_t Vocabulary::last_letter(std::string_view bytes) const {
  size_t begin = bytes.size() - 1;
  if (alphabet_ == Alphabet::characters_bytes) {
    while ((static_cast<Byte>(bytes[begin]) & 0xC0) == 0x80) --begin;
  }
  return first_letter(bytes.substr(begin));
}

bool Vocabulary::may_join(uint32_t a, uint32_t b) const {
  if (joins_anything_) return true;
  const uint64_t pair = key(a, b);
  const size_t mask = joins_.size() - 1;
  for (size_t slot = mix(pair, 0) & mask; joins_[slot] != EMPTY; slot = (slot + 1) & mask) {
    if (joins_[slot] == pair) return true;
  }
  return false;
}

}  // namespace minigpt::tokenizer
