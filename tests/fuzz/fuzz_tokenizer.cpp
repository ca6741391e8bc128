// libFuzzer on the tokenizer's core, without Python: tests/fuzz/fuzz_tokenizer.sh [SECONDS]
//
// The input says which options, which vocabulary and which text. A hostile vocabulary must be refused with
// std::invalid_argument or work; a good one must encode as the definition of BPE does, word for word, and decode to the
// text again.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "tokenizer/encoder.h"
#include "tokenizer/text.h"
#include "tokenizer/trainer.h"

using namespace minigpt::tokenizer;

namespace {

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "property violated: %s\n", what);
  std::abort();
}

// The input, eaten from the front; zeros once it is empty.
struct Input {
  std::string_view bytes;

  unsigned byte() {
    if (bytes.empty()) return 0;
    const unsigned value = static_cast<Byte>(bytes[0]);
    bytes.remove_prefix(1);
    return value;
  }
  std::string string(size_t most) {
    const size_t size = std::min({size_t{byte()}, most, bytes.size()});
    const std::string value(bytes.substr(0, size));
    bytes.remove_prefix(size);
    return value;
  }
  int64_t number() {  // mostly small
    const unsigned kind = byte();
    if (kind < 250) return kind;
    constexpr int64_t extremes[] = {-1, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, 256};
    return extremes[kind - 250];
  }
};

struct Parts {
  std::vector<std::optional<std::string>> tokens;
  std::vector<std::pair<Id, Id>> merges;
  std::vector<std::pair<std::string, Id>> specials;
};

std::vector<std::optional<std::string>> alphabet_tokens(Alphabet alphabet) {
  std::vector<std::optional<std::string>> tokens;
  for (int b = 0; b < 256; ++b) {
    tokens.push_back(alphabet == Alphabet::bytes ? std::string(1, static_cast<char>(b)) : byte_token(b));
  }
  if (alphabet == Alphabet::bytes) return tokens;
  for (char c : std::string("ab <0x41>")) {
    const std::string token(1, c);
    if (std::find(tokens.begin(), tokens.end(), token) == tokens.end()) tokens.push_back(token);
  }
  tokens.insert(tokens.end(), {"\xE2\x96\x81", "\xC3\xA9", "\xE6\xBC\xA2", "\xF0\x9F\x98\x80"});
  return tokens;
}

// Merges of tokens that there are, each once, in any order of ranks.
Parts good_parts(Input& input, Alphabet alphabet) {
  Parts parts{alphabet_tokens(alphabet), {}, {}};
  const size_t letters = parts.tokens.size();
  for (unsigned n = input.byte() % 48; n > 0; --n) {
    const auto pick = [&]() -> Id {
      const unsigned choice = input.byte();
      const bool later = choice >= 128 && parts.tokens.size() > letters;
      return static_cast<Id>(later                         ? letters + choice % (parts.tokens.size() - letters)
                             : alphabet == Alphabet::bytes ? choice
                                                           : 256 + choice % (letters - 256));
    };
    const std::pair<Id, Id> pair{pick(), pick()};
    const std::string merged = *parts.tokens[pair.first] + *parts.tokens[pair.second];
    if (merged.size() > 200 || std::find(parts.merges.begin(), parts.merges.end(), pair) != parts.merges.end())
      continue;
    parts.merges.insert(parts.merges.begin() + input.byte() % (parts.merges.size() + 1), pair);
    if (std::find(parts.tokens.begin(), parts.tokens.end(), merged) == parts.tokens.end())
      parts.tokens.push_back(merged);
  }
  for (unsigned n = input.byte() % 4; n > 0; --n) {
    std::string name = input.string(8);
    const auto same = [&](const auto& special) { return special.first == name; };
    if (name.empty() || std::any_of(parts.specials.begin(), parts.specials.end(), same)) continue;
    parts.specials.emplace_back(std::move(name), static_cast<Id>(1000 + parts.specials.size()));
  }
  return parts;
}

Parts hostile_parts(Input& input, Alphabet alphabet) {
  Parts parts;
  if (input.byte() % 4) parts.tokens = alphabet_tokens(alphabet);
  for (unsigned n = input.byte() % 16; n > 0; --n) {
    if (input.byte() % 8 == 0) {
      parts.tokens.push_back(std::nullopt);
    } else {
      parts.tokens.push_back(input.string(40));
    }
  }
  for (unsigned n = input.byte() % 16; n > 0; --n) {
    const Id left = static_cast<Id>(input.number());
    parts.merges.emplace_back(left, static_cast<Id>(input.number()));
  }
  for (unsigned n = input.byte() % 4; n > 0; --n) {
    std::string name = input.string(8);
    parts.specials.emplace_back(std::move(name), static_cast<Id>(input.number()));
  }
  return parts;
}

// BPE as it is defined: all pairs are looked at for each merge.
std::vector<Id> merged_naively(const Vocabulary& vocabulary, std::vector<Id> ids) {
  for (;;) {
    size_t best = ids.size();
    uint32_t rank = Merge::NEVER;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const Merge merge = vocabulary.merge(ids[i], ids[i + 1]);
      if (merge.rank < rank) best = i, rank = merge.rank;
    }
    if (rank == Merge::NEVER) return ids;
    ids[best] = vocabulary.merge(ids[best], ids[best + 1]).id;
    ids.erase(ids.begin() + best + 1);
  }
}

std::vector<Id> symbols(const Vocabulary& vocabulary, std::string_view piece) {
  std::vector<Id> ids;
  while (!piece.empty()) {
    const auto* p = reinterpret_cast<const Byte*>(piece.data());
    const size_t length = vocabulary.alphabet() == Alphabet::bytes ? 1 : character_at(p, p + piece.size()).length;
    const Id id = vocabulary.find(piece.substr(0, length));
    if (id >= 0) {
      ids.push_back(id);
    } else {
      for (size_t i = 0; i < length; ++i) ids.push_back(vocabulary.byte_id(p[i]));
    }
    piece.remove_prefix(length);
  }
  return ids;
}

std::vector<Id> encoded_naively(const Vocabulary& vocabulary, const Options& options, std::string_view text) {
  std::vector<Id> ids;
  const auto* begin = reinterpret_cast<const Byte*>(text.data());
  const Byte* at = begin;
  for_each_piece(options.pattern, begin, begin + text.size(), [&](const Byte* from, const Byte* to) {
    require(from == at && to > from && to <= begin + text.size(), "pieces follow one another");
    at = to;
    const std::string_view piece(reinterpret_cast<const char*>(from), to - from);
    const Id whole = options.ignore_merges ? vocabulary.find(piece) : -1;
    const std::vector<Id> merged =
        whole >= 0 ? std::vector<Id>{whole} : merged_naively(vocabulary, symbols(vocabulary, piece));
    ids.insert(ids.end(), merged.begin(), merged.end());
  });
  require(at == begin + text.size(), "pieces are all of the text");
  return ids;
}

std::vector<Id> as_vector(const IdBuffer& ids) { return {ids.data(), ids.data() + ids.size()}; }

std::string decoded(const Encoder& encoder, const IdBuffer& ids) {
  const std::vector<int64_t> numbers(ids.data(), ids.data() + ids.size());
  return encoder.decode(numbers);
}

void check_encoder(const Vocabulary& vocabulary, const Parts& parts, const Options& options, const std::string& text) {
  const Encoder encoder(vocabulary, parts.specials, options);
  const Specials& specials = encoder.specials();
  const IdBuffer ids = encoder.encode(text, specials.none());
  require(as_vector(ids) == as_vector(encoder.encode(text, specials.none())), "a second time, from the cache");
  const IdBuffer with_specials = encoder.encode(text, specials.all());
  if (options.metaspace != Metaspace::none) {
    decoded(encoder, with_specials);
    return;
  }
  require(as_vector(ids) == encoded_naively(vocabulary, options, text), "as BPE is defined");
  // Where merges spell "<0x41>", that text is taken for the byte: SentencePiece's vocabularies cannot tell them apart.
  const bool spelled = vocabulary.alphabet() == Alphabet::characters_bytes &&
                       (options.ignore_merges || std::any_of(parts.merges.begin(), parts.merges.end(), [&](auto pair) {
                          return byte_of_token(*parts.tokens[pair.first] + *parts.tokens[pair.second]) >= 0;
                        }));
  if (spelled) return;
  require(decoded(encoder, ids) == text, "decode(encode(text)) == text");
  require(decoded(encoder, with_specials) == text, "decode(encode(text)) == text with special tokens");
}

void check_trainer(const std::string& text, Pattern pattern, unsigned size) {
  const size_t half = text.size() / 2;
  const std::string_view whole = text;
  const std::vector<std::string_view> texts{whole.substr(0, half), whole.substr(half), whole};
  const Trained one = train(texts, 256 + size, pattern, 1, 0);
  const Trained three = train(texts, 256 + size, pattern, 3, 0);
  require(one.tokens == three.tokens && one.merges == three.merges, "threads change nothing in training");
  require(one.tokens.size() <= 256 + size, "training stops at vocab_size");
  const std::vector<std::optional<std::string>> tokens(one.tokens.begin(), one.tokens.end());
  check_encoder(Vocabulary(tokens, one.merges, Alphabet::bytes), {tokens, one.merges, {}},
                {.pattern = pattern, .cache_bits = 3}, text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input{{reinterpret_cast<const char*>(data), size}};
  const unsigned kind = input.byte();
  const Alphabet alphabet = kind & 1 ? Alphabet::characters_bytes : Alphabet::bytes;
  Options options{static_cast<Pattern>(input.byte() % 6), (kind & 2) != 0, Metaspace::none};
  if (kind & 4) options.metaspace = static_cast<Metaspace>(input.byte() % 5);
  options.cache_bits = 3;  // so that words drive each other out
  const bool hostile = kind & 8;
  Parts parts = hostile ? hostile_parts(input, alphabet) : good_parts(input, alphabet);
  const unsigned repeats = 1 + (kind & 16 ? input.byte() % 40 : 0);
  std::string text;
  for (unsigned i = 0; i < repeats; ++i) text += input.bytes;
  try {
    check_encoder(Vocabulary(parts.tokens, parts.merges, alphabet), parts, options, text.substr(0, 1000));
  } catch (const std::invalid_argument&) {
    require(hostile, "a good vocabulary is taken");
  }
  if (kind & 32) check_trainer(text.substr(0, 1000), options.pattern, input.byte() % 64);
  return 0;
}
