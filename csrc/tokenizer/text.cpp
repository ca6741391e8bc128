#include "text.h"

#include "unicode.h"

namespace minigpt::tokenizer {

constexpr char HEX[] = "0123456789ABCDEF";

std::string quote(std::string_view bytes) {
  constexpr size_t most = 40;
  std::string text = "\"";
  for (unsigned char c : bytes.substr(0, most)) {
    if (c == '"' || c == '\\') text += '\\';
    if (c >= 0x20 && c < 0x7F) {
      text += static_cast<char>(c);
    } else {
      text += {'\\', 'x', HEX[c >> 4], HEX[c & 15]};
    }
  }
  return text + (bytes.size() > most ? "...\"" : "\"");
}

bool is_utf8(std::string_view bytes) {
  const auto* p = reinterpret_cast<const Byte*>(bytes.data());
  const Byte* end = p + bytes.size();
  while (p < end) {
    const Character c = character_at(p, end);
    if (c.code == MALFORMED) return false;
    p += c.length;
  }
  return true;
}

std::string byte_token(int byte) { return {'<', '0', 'x', HEX[byte >> 4], HEX[byte & 15], '>'}; }

int byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const std::string_view digits(HEX, 16);
  const size_t high = digits.find(token[3]), low = digits.find(token[4]);
  return high == digits.npos || low == digits.npos ? -1 : static_cast<int>(high << 4 | low);
}

}  // namespace minigpt::tokenizer
