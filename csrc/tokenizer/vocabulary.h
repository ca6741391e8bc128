// The tokens and merges of a BPE vocabulary, checked once, and looked up fast ever after.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "hash.h"
#include "id_buffer.h"
#include "unicode.h"

namespace minigpt::tokenizer {

// What a piece begins as, before merges.
enum class Alphabet {
  bytes,             // its bytes, each of which is a token
  characters_bytes,  // its characters; one that is no token becomes the tokens "<0x00>" ... "<0xFF>" of its bytes
};

// A pair of tokens becomes one. The lower the rank, the sooner.
struct Merge {
  static constexpr uint32_t NEVER = UINT32_MAX;
  uint32_t rank = NEVER;
  Id id = -1;
};

class Vocabulary {
 public:
  // tokens[id] is what the id stands for; nullopt: no such id. merges[rank] = (left id, right id), whose concatenation
  // is a token. Throws std::invalid_argument where that does not hold, a token is empty or there twice, a merge is there
  // twice, or a token of the alphabet is missing.
  Vocabulary(std::vector<std::optional<std::string>> tokens, const std::vector<std::pair<Id, Id>>& merges,
             Alphabet alphabet);

  // The token of these bytes, or -1. O(length).
  Id find(std::string_view bytes) const;

  // How left and right merge; rank NEVER where they do not.
  Merge merge(Id left, Id right) const {
    const uint64_t pair = key(left, right), hash = mix(pair, 0);
    if (!(perhaps_[hash >> perhaps_shift_] >> (hash >> 32 & 63) & 1)) return {};
    for (size_t slot = hash & merge_mask_;; slot = (slot + 1) & merge_mask_) {
      const MergeSlot& s = merges_[slot];
      if (s.pair == pair) return s.merge;
      if (s.pair == EMPTY) return {};
    }
  }

  // Whether some merge joins a token that ends with a to one that begins with b, both letters of the alphabet: bytes, or
  // code points. Where none does, a text can be cut between a and b without changing what it encodes to.
  bool may_join(uint32_t a, uint32_t b) const;

  Alphabet alphabet() const { return alphabet_; }
  Id byte_id(Byte byte) const { return byte_ids_[byte]; }
  size_t size() const { return tokens_.size(); }
  bool has(Id id) const { return id >= 0 && static_cast<size_t>(id) < tokens_.size() && tokens_[id].has_value(); }
  const std::string& token(Id id) const { return *tokens_[id]; }

 private:
  static constexpr uint64_t EMPTY = UINT64_MAX;  // no pair: ids are not negative

  struct MergeSlot {
    uint64_t pair = EMPTY;
    Merge merge;
  };

  struct TokenSlot {
    uint32_t hash = 0;  // its upper half, so that another token seldom needs to be looked at
    Id id = -1;
  };

  static uint64_t key(uint32_t left, uint32_t right) { return static_cast<uint64_t>(left) << 32 | right; }

  void index_tokens();
  void find_byte_tokens();
  void index_merges(const std::vector<std::pair<Id, Id>>& merges);
  void note_join(Id left, Id right, Id merged);
  uint32_t first_letter(std::string_view bytes) const;
  uint32_t last_letter(std::string_view bytes) const;

  std::vector<std::optional<std::string>> tokens_;
  Alphabet alphabet_;
  std::array<Id, 256> byte_ids_;
  std::vector<TokenSlot> by_bytes_;
  std::vector<MergeSlot> merges_;
  size_t merge_mask_ = 0;
  std::vector<uint64_t> perhaps_;  // a bit for each hash; 0: no such merge. Small enough for the nearest cache
  int perhaps_shift_ = 0;
  std::vector<uint64_t> joins_;  // open addressing; what may_join answers from
  bool joins_anything_ = false;
};

}  // namespace minigpt::tokenizer
