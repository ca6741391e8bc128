#include "pretokenizer.h"

#include <stdexcept>
#include <string>

namespace minigpt::tokenizer {

Pattern pattern_named(std::string_view name) {
  if (name == "gpt2") return Pattern::gpt2;
  if (name == "smollm") return Pattern::smollm;
  if (name == "llama3") return Pattern::llama3;
  if (name == "cl100k") return Pattern::cl100k;
  if (name == "qwen2") return Pattern::qwen2;
  if (name == "none") return Pattern::none;
  throw std::invalid_argument("pattern must be gpt2, smollm, llama3, cl100k, qwen2 or none, got '" + std::string(name) +
                              "'");
}

}  // namespace minigpt::tokenizer
