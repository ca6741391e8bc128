// Hashing for tables with open addressing: a multiplication that mixes both halves of its 128-bit product.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace minigpt::tokenizer {

inline uint64_t mix(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a ^ 0x9E3779B97F4A7C15) * (b ^ 0xD6E8FEB86659FD93);
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline uint64_t hash_bytes(std::string_view bytes) {
  uint64_t hash = bytes.size();
  while (bytes.size() > 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data(), 8);
    hash = mix(hash, word);
    bytes.remove_prefix(8);
  }
  uint64_t word = 0;
  std::memcpy(&word, bytes.data(), bytes.size());
  return mix(hash, word);
}

// The slots of an open-addressing table for `count` entries: a power of two, at most half full.
inline size_t slots_for(size_t count) { return std::bit_ceil(2 * count + 2); }

}  // namespace minigpt::tokenizer
