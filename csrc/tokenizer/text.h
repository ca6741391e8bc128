// Small things about bytes and text that several files ask for.
#pragma once

#include <string>
#include <string_view>

namespace minigpt::tokenizer {

// For messages: in quotes, what is not printable ASCII as \xNN, long ones cut.
std::string quote(std::string_view bytes);

bool is_utf8(std::string_view bytes);

// "<0x0A>" for 10, as SentencePiece spells the token of a byte.
std::string byte_token(int byte);

// 10 for "<0x0A>"; -1 for what is no byte's token.
int byte_of_token(std::string_view token);

}  // namespace minigpt::tokenizer
