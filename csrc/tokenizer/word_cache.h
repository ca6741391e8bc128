// What short pieces encode to, remembered: most of a text are words that came before.
#pragma once

#include <cstring>
#include <vector>

#include "hash.h"
#include "vocabulary.h"

namespace minigpt::tokenizer {

class WordCache {
 public:
  static constexpr size_t MOST_BYTES = 15, MOST_IDS = 3;

  // A piece of up to 15 bytes as two registers: the bytes, zeros, and the length in the last byte.
  struct Key {
    uint64_t low, high;
    bool operator==(const Key&) const = default;
  };

  struct Entry {
    Key key{0, 0};  // of no piece: pieces are not empty
    Id ids[MOST_IDS];
    uint32_t count;
  };

  WordCache() : entries_(ENTRIES) {}

  // bytes in [1, MOST_BYTES]. Reads 16 bytes at once where the text goes on for so long.
  static Key key_of(const Byte* piece, size_t bytes, const Byte* text_end) {
    Key key{0, 0};
    if (text_end - piece >= 16) {
      std::memcpy(&key, piece, 16);
      const uint64_t kept = ~uint64_t{0} >> (64 - 8 * (bytes & 7)) % 64;
      if (bytes < 8) key = {key.low & kept, 0};
      if (bytes == 8) key.high = 0;
      if (bytes > 8) key.high &= kept;
    } else {
      std::memcpy(&key, piece, bytes);
    }
    key.high |= static_cast<uint64_t>(bytes) << 56;
    return key;
  }

  // The only place where the piece may be: a newer one takes an older one's.
  Entry& place(const Key& key) { return entries_[mix(key.low, key.high) >> (64 - BITS)]; }

 private:
  static constexpr int BITS = 16;
  static constexpr size_t ENTRIES = size_t{1} << BITS;  // 2 MiB

  std::vector<Entry> entries_;
};

}  // namespace minigpt::tokenizer
