// What short pieces encode to, remembered: most of a text are words that came before.
#pragma once

#include <algorithm>
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
    Id ids[MOST_IDS]{};
    uint32_t count = 0;
  };

  // 2^bits places for two pieces each, 64 bytes a place.
  explicit WordCache(int bits) : shift_(64 - bits), lines_(size_t{1} << bits) {}

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

  const Entry* find(const Key& key) const {
    const Line& line = lines_[line_of(key)];
    return line.newer.key == key ? &line.newer : line.older.key == key ? &line.older : nullptr;
  }

  void remember(const Key& key, const Id* ids, size_t count) {
    Line& line = lines_[line_of(key)];
    line.older = line.newer;
    line.newer.key = key;
    line.newer.count = static_cast<uint32_t>(count);
    std::copy(ids, ids + count, line.newer.ids);
  }

 private:
  struct alignas(64) Line {  // two places in a cache line; what comes in drives out the older of them
    Entry newer, older;
  };

  size_t line_of(const Key& key) const { return mix(key.low, key.high) >> shift_; }

  int shift_;
  std::vector<Line> lines_;
};

}  // namespace minigpt::tokenizer
