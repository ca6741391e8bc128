// A BPE tokenizer: text to ids, and back.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pretokenizer.h"
#include "specials.h"
#include "vocabulary.h"
#include "word_cache.h"

namespace minigpt::tokenizer {

// SentencePiece writes a space as U+2581. What is done to a stretch of text between two special tokens:
enum class Metaspace {
  none,     // nothing
  replace,  // " " becomes U+2581
  prepend,  // that, and one more is put in front
  always,   // that, unless one is there already
  first,    // that, at the very beginning of the text only
};

Metaspace metaspace_named(std::string_view name);
Alphabet alphabet_named(std::string_view name);

struct Options {
  Pattern pattern = Pattern::gpt2;
  bool ignore_merges = false;  // a piece that is a token is that token, whatever merges would make of it
  Metaspace metaspace = Metaspace::none;
  int cache_bits = 15;  // 2^(bits + 6) bytes for the words that a thread remembers: two megabytes
};

class Encoder {
 public:
  Encoder(Vocabulary vocabulary, std::vector<std::pair<std::string, Id>> specials, Options options);

  const Specials& specials() const { return specials_; }

  // The ids of a text in UTF-8. May be called from several threads at once.
  IdBuffer encode(std::string_view text, const Specials::Allowed& allowed) const;

  // The bytes that the ids stand for. Throws std::invalid_argument for an id that stands for nothing.
  std::string decode(std::span<const int64_t> ids) const;

 private:
  class Lease;

  void encode_stretch(std::string_view stretch, bool first, WordCache& cache, IdBuffer& ids) const;
  void encode_piece(const Byte* begin, const Byte* end, const Byte* text_end, WordCache& cache, IdBuffer& ids) const;
  void encode_uncut(const Byte* begin, const Byte* end, WordCache& cache, IdBuffer& ids) const;
  void merge_piece(const Byte* begin, const Byte* end, IdBuffer& ids) const;
  void append_symbols(const Byte* begin, const Byte* end, IdBuffer& ids) const;
  std::string with_metaspace(std::string_view stretch, bool first) const;
  std::string decoded(Id id) const;
  bool is_whole(Id id) const;

  Vocabulary vocabulary_;
  Specials specials_;
  Options options_;
  std::vector<std::string> decoded_;  // by id; empty: no such id
  std::vector<bool> whole_;           // by id: a piece of its bytes is this token, by is_whole
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<WordCache>> idle_;  // one for each call that was under way at once
};

}  // namespace minigpt::tokenizer
