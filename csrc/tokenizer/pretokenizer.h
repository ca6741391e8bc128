// Pre-tokenisation: a text is cut into pieces, and BPE never merges across a cut.
//
// The patterns are regular expressions where they were published. Here each is a function of what stands at the
// beginning of a piece, hand-written: no backtracking, so that cutting a text is linear whatever is in it.
//
//   gpt2     '(s|t|re|ve|m|ll|d) | " "?\p{L}+ | " "?\p{N}+ | " "?[^\s\p{L}\p{N}]+ | \s+(?!\S) | \s+
//   smollm   each number is a piece; gpt2 on what lies between
//   llama3   (?i:'(s|t|re|ve|m|ll|d)) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N}{1,3} | " "?[^\s\p{L}\p{N}]+[\r\n]*
//            | \s*[\r\n]+ | \s+(?!\S) | \s+
//   cl100k   llama3, but spaces at the end of the text are one piece, newlines or not: tiktoken tries \s+$ first
//   qwen2    llama3 with \p{N} for \p{N}{1,3}
//   none     the whole text
//
// \p{L}, \p{N} and \s are those of Unicode 16, as in tiktoken 0.14 and tokenizers 0.23. (?i:s) also is U+017F.
#pragma once

#include <bit>
#include <cstring>
#include <string_view>

#include "unicode.h"

namespace minigpt::tokenizer {

enum class Pattern { gpt2, smollm, llama3, cl100k, qwen2, none };

// Throws std::invalid_argument where there is no pattern of that name.
Pattern pattern_named(std::string_view name);

// Cuts pieces off a text; P is not Pattern::none.
template <Pattern P>
class PieceCutter {
 public:
  explicit PieceCutter(const Byte* end) : end_(end), classes_(character_classes(P == Pattern::smollm)) {}

  // The end of the piece that begins at p < end.
  const Byte* piece_end(const Byte* p) const { return like_gpt2 ? gpt2_piece(p) : llama3_piece(p); }

 private:
  static constexpr bool like_gpt2 = P == Pattern::gpt2 || P == Pattern::smollm;

  struct Seen {
    unsigned kind;  // the class; 0 at the end of the text
    const Byte* next;
  };

  Seen look(const Byte* p) const {
    if (p == end_) return {0, p};
    if (*p < 0x80) return {classes_[*p], p + 1};
    const Character c = character_at(p, end_);
    return {classes_[c.code], p + c.length};
  }

  // Past all characters of the kind.
  const Byte* skip(const Byte* p, unsigned kind) const {
    if (kind == LETTER) p = skip_ascii_letters(p);
    for (Seen seen = look(p); seen.kind & kind; seen = look(p)) p = seen.next;
    return p;
  }

  // Eight at a time: bit 7 of each byte says whether it is none of a-z and A-Z.
  const Byte* skip_ascii_letters(const Byte* p) const {
    constexpr uint64_t each = 0x0101010101010101;
    for (; end_ - p >= 8; p += 8) {
      uint64_t bytes;
      std::memcpy(&bytes, p, 8);
      if constexpr (std::endian::native == std::endian::big) return p;
      const uint64_t low = (bytes | 0x20 * each) & 0x7F * each;
      const uint64_t from_a = low + (0x80 - 'a') * each, behind_z = low + (0x7F - 'z') * each;
      const uint64_t others = ~(from_a & ~behind_z & ~bytes) & 0x80 * each;
      if (others) return p + std::countr_zero(others) / 8;
    }
    return p;
  }

  const Byte* gpt2_piece(const Byte* p) const {
    if (*p == '\'') {
      if (const Byte* end = contraction_end(p)) return end;
    }
    const Byte* content = *p == ' ' ? p + 1 : p;
    const Seen first = look(content);
    if (P == Pattern::smollm && (first.kind & NUMBER)) return content == p ? first.next : content;
    if (first.kind & (LETTER | NUMBER | OTHER)) return skip(first.next, first.kind);
    return spaces_end(p);
  }

  const Byte* llama3_piece(const Byte* p) const {
    const Seen first = look(p);
    if (first.kind & LETTER) return skip(first.next, LETTER);
    if (first.kind & NUMBER) return numbers_end(first.next);
    if (*p == '\'') {
      if (const Byte* end = contraction_end(p)) return end;
    }
    const Seen second = look(first.next);
    if (!(first.kind & NEWLINE) && (second.kind & LETTER)) return skip(second.next, LETTER);
    const Seen& symbol = *p == ' ' ? second : first;
    if (!(symbol.kind & OTHER)) return spaces_end(p);
    const Byte* end = skip(symbol.next, OTHER);
    while (end < end_ && (*end == '\r' || *end == '\n')) ++end;
    return end;
  }

  const Byte* numbers_end(const Byte* p) const {
    constexpr int most = P == Pattern::qwen2 ? 1 : 3;
    for (int count = 1; count < most; ++count) {
      const Seen seen = look(p);
      if (!(seen.kind & NUMBER)) break;
      p = seen.next;
    }
    return p;
  }

  // 's 't 'm 'd 're 've 'll at the apostrophe p, or null.
  const Byte* contraction_end(const Byte* p) const {
    const auto letter = [&](int i) -> int {
      if (end_ - p <= i) return 0;
      return !like_gpt2 && p[i] >= 'A' && p[i] <= 'Z' ? p[i] + ('a' - 'A') : p[i];
    };
    const int one = letter(1), two = letter(2);
    if (one == 's' || one == 't' || one == 'm' || one == 'd') return p + 2;
    if ((one == 'r' && two == 'e') || (one == 'v' && two == 'e') || (one == 'l' && two == 'l')) return p + 3;
    if (!like_gpt2 && one == 0xC5 && two == 0xBF) return p + 3;  // U+017F, the long s, folds to s
    return nullptr;
  }

  // A run of spaces. The last of them is left to the word behind it.
  const Byte* spaces_end(const Byte* p) const {
    const Byte *run = p, *last = p, *behind_newline = nullptr;
    Seen seen = look(p);
    for (; seen.kind & SPACE; seen = look(run)) {
      last = run;
      run = seen.next;
      if (seen.kind & NEWLINE) behind_newline = run;
    }
    if (P == Pattern::cl100k && run == end_) return run;
    if (!like_gpt2 && behind_newline) return behind_newline;
    const bool nothing_behind = run == end_ || (P == Pattern::smollm && (seen.kind & NUMBER));
    return nothing_behind || last == p ? run : last;
  }

  const Byte* end_;
  const uint8_t* classes_;
};

// Calls use(begin, end) for each piece of the text.
template <Pattern P, typename Use>
void for_each_piece(const Byte* begin, const Byte* end, Use use) {
  const PieceCutter<P> cutter(end);
  while (begin < end) {
    const Byte* next = cutter.piece_end(begin);
    use(begin, next);
    begin = next;
  }
}

template <typename Use>
void for_each_piece(Pattern pattern, const Byte* begin, const Byte* end, Use use) {
  switch (pattern) {
    case Pattern::gpt2:
      return for_each_piece<Pattern::gpt2>(begin, end, use);
    case Pattern::smollm:
      return for_each_piece<Pattern::smollm>(begin, end, use);
    case Pattern::llama3:
      return for_each_piece<Pattern::llama3>(begin, end, use);
    case Pattern::cl100k:
      return for_each_piece<Pattern::cl100k>(begin, end, use);
    case Pattern::qwen2:
      return for_each_piece<Pattern::qwen2>(begin, end, use);
    case Pattern::none:
      if (begin < end) use(begin, end);
  }
}

}  // namespace minigpt::tokenizer
