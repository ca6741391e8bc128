#include "unicode.h"

#include <algorithm>
#include <span>
#include <vector>

#include "unicode_ranges.h"

namespace minigpt::tokenizer {

static std::vector<uint8_t> make_classes(bool later_numbers) {
  std::vector<uint8_t> classes(MALFORMED + 1, OTHER);
  const auto set = [&](std::span<const Range> ranges, uint8_t value) {
    for (auto [first, last] : ranges) std::fill(&classes[first], &classes[last] + 1, value);
  };
  set(LETTERS, LETTER);
  set(NUMBERS, NUMBER);
  set(SPACES, SPACE);
  if (later_numbers) set(LATER_NUMBERS, NUMBER);
  classes['\r'] = classes['\n'] = SPACE | NEWLINE;
  return classes;
}

const uint8_t* character_classes(bool later_numbers) {
  static const std::vector<uint8_t> classes = make_classes(false);
  static const std::vector<uint8_t> with_later_numbers = make_classes(true);
  return (later_numbers ? with_later_numbers : classes).data();
}

}  // namespace minigpt::tokenizer
