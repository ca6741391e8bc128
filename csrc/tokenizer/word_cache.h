// What short pieces encode to, remembered: most of a text are words that came before.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "hash.h"
#include "id_buffer.h"
#include "unicode.h"

namespace minigpt::tokenizer {

// For pieces of fewer than 8 WORDS bytes that encode to IDS ids at most. Two places for each hash; what comes in drives
// out the older of them.
template <size_t WORDS, size_t IDS>
class WordCache {
 public:
  static constexpr size_t MOST_BYTES = 8 * WORDS - 1, MOST_IDS = IDS;

  // A piece as registers: its bytes, zeros, and its length in the last byte.
  struct Key {
    uint64_t words[WORDS]{};

    bool operator==(const Key& other) const {  // word by word: they are in registers
      uint64_t different = 0;
      for (size_t i = 0; i < WORDS; ++i) different |= words[i] ^ other.words[i];
      return different == 0;
    }
  };

  struct Entry {
    Key key{};  // zeros: no piece's
    Id ids[IDS]{};
    uint32_t count = 0;
  };

  // 2^bits pairs of places.
  explicit WordCache(int bits) : shift_(64 - bits), lines_(size_t{1} << bits) {}

  // bytes in [1, MOST_BYTES]. Reads all of the registers at once where the text goes on for so long.
  static Key key_of(const Byte* piece, size_t bytes, const Byte* text_end) {
    Key key;
    if (text_end - piece >= static_cast<ptrdiff_t>(sizeof key)) {
      for (size_t i = 0; i < WORDS; ++i) {
        std::memcpy(&key.words[i], piece + 8 * i, 8);
        const size_t kept = bytes > 8 * i ? bytes - 8 * i : 0;
        if (kept < 8) key.words[i] &= (uint64_t{1} << 8 * kept) - 1;
      }
    } else {
      std::memcpy(key.words, piece, bytes);
    }
    key.words[WORDS - 1] |= static_cast<uint64_t>(bytes) << 56;
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
  struct alignas(64) Line {
    Entry newer, older;
  };

  size_t line_of(const Key& key) const {
    uint64_t hash = 0;
    for (size_t i = 0; i < WORDS; i += 2) hash = mix(hash ^ key.words[i], key.words[i + 1]);
    return hash >> shift_;
  }

  int shift_;
  std::vector<Line> lines_;
};

// What one call of encode needs. Nearly all words of English and of programs fit the first cache, whose lines the
// processor holds best; the second is for longer words, also those of scripts with two or three bytes a letter.
struct WordCaches {
  explicit WordCaches(int bits) : small(bits), large(bits - 1) {}

  WordCache<2, 3> small;  // 2^bits * 64 bytes
  WordCache<4, 7> large;  // as many
};

}  // namespace minigpt::tokenizer
