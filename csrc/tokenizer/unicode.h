// Characters and their classes, in UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>

namespace minigpt::tokenizer {

using Byte = unsigned char;

// The classes that pre-tokenisation asks for. Every code point has one of them; a newline is a space too.
enum : uint8_t { LETTER = 1, NUMBER = 2, SPACE = 4, NEWLINE = 8, OTHER = 16 };

struct Character {
  uint32_t code;
  uint32_t length;  // bytes
};

constexpr uint32_t MALFORMED = 0x110000;  // the code of a byte that begins no valid sequence

// The character at p < end. A byte that begins no valid sequence of UTF-8 is a character of its own.
inline Character character_at(const Byte* p, const Byte* end) {
  const uint32_t lead = *p;
  if (lead < 0x80) return {lead, 1};
  const auto continues = [&](int i) { return (p[i] & 0xC0) == 0x80; };
  const ptrdiff_t left = end - p;
  if (lead >= 0xC2 && lead < 0xE0 && left >= 2 && continues(1)) return {(lead & 0x1F) << 6 | (p[1] & 0x3Fu), 2};
  if (lead >= 0xE0 && lead < 0xF0 && left >= 3 && continues(1) && continues(2)) {
    const uint32_t code = (lead & 0x0F) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
    if (code >= 0x800 && (code < 0xD800 || code >= 0xE000)) return {code, 3};
  }
  if (lead >= 0xF0 && lead < 0xF5 && left >= 4 && continues(1) && continues(2) && continues(3)) {
    const uint32_t code = (lead & 0x07) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
    if (code >= 0x10000 && code < 0x110000) return {code, 4};
  }
  return {MALFORMED, 1};
}

// classes[code], also for MALFORMED. With later_numbers also those numbers that tokenizers' Digits knows and \p{N} not.
// One byte each: texts keep to a few scripts, so that the few kilobytes of the table that they touch stay in the cache.
const uint8_t* character_classes(bool later_numbers);

}  // namespace minigpt::tokenizer
