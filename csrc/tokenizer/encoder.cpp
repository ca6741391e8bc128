#include "encoder.h"

#include <stdexcept>

#include "merging.h"
#include "text.h"
#include "word_cache.h"

namespace minigpt::tokenizer {

constexpr std::string_view SPACE_MARK = "\xE2\x96\x81";  // U+2581

static std::string_view as_text(const Byte* begin, const Byte* end) {
  return {reinterpret_cast<const char*>(begin), static_cast<size_t>(end - begin)};
}

Metaspace metaspace_named(std::string_view name) {
  if (name == "none") return Metaspace::none;
  if (name == "replace") return Metaspace::replace;
  if (name == "prepend") return Metaspace::prepend;
  if (name == "always") return Metaspace::always;
  if (name == "first") return Metaspace::first;
  throw std::invalid_argument("metaspace must be none, replace, prepend, always or first, got " + quote(name));
}

Alphabet alphabet_named(std::string_view name) {
  if (name == "bytes") return Alphabet::bytes;
  if (name == "characters+bytes") return Alphabet::characters_bytes;
  throw std::invalid_argument("alphabet must be bytes or characters+bytes, got " + quote(name));
}

// Lends a cache for the time of one call: an idle one, which knows words, or a new one.
class Encoder::Lease {
 public:
  explicit Lease(const Encoder& encoder) : encoder_(encoder) {
    const std::lock_guard lock(encoder_.mutex_);
    if (encoder_.idle_.empty()) {
      cache_ = std::make_unique<WordCache>(encoder_.options_.cache_bits);
    } else {
      cache_ = std::move(encoder_.idle_.back());
      encoder_.idle_.pop_back();
    }
  }
  ~Lease() {
    const std::lock_guard lock(encoder_.mutex_);
    encoder_.idle_.push_back(std::move(cache_));
  }
  WordCache& operator*() { return *cache_; }

 private:
  const Encoder& encoder_;
  std::unique_ptr<WordCache> cache_;
};

Encoder::Encoder(Vocabulary vocabulary, std::vector<std::pair<std::string, Id>> specials, Options options)
    : vocabulary_(std::move(vocabulary)), specials_(std::move(specials), vocabulary_), options_(options) {
  decoded_.resize(vocabulary_.size());
  for (size_t id = 0; id < decoded_.size(); ++id) {
    if (vocabulary_.has(id)) decoded_[id] = decoded(id);
  }
  whole_.resize(vocabulary_.size());
  for (size_t id = 0; id < whole_.size(); ++id) {
    whole_[id] = vocabulary_.has(id) && is_whole(id);
  }
}

IdBuffer Encoder::encode(std::string_view text, const Specials::Allowed& allowed) const {
  Lease cache(*this);
  IdBuffer ids;
  for (size_t at = 0; at < text.size();) {
    const Specials::Match special = specials_.find(text, at, allowed);
    if (special.begin > at) encode_stretch(text.substr(at, special.begin - at), at == 0, *cache, ids);
    if (special.id >= 0) ids.push_back(special.id);
    at = special.end;
  }
  return ids;
}

void Encoder::encode_stretch(std::string_view stretch, bool first, WordCache& cache, IdBuffer& ids) const {
  std::string marked;
  if (options_.metaspace != Metaspace::none) stretch = marked = with_metaspace(stretch, first);
  const auto* begin = reinterpret_cast<const Byte*>(stretch.data());
  const Byte* end = begin + stretch.size();
  if (options_.pattern == Pattern::none) return encode_uncut(begin, end, cache, ids);
  for_each_piece(options_.pattern, begin, end, [&](const Byte* from, const Byte* to) {  //
    encode_piece(from, to, end, cache, ids);
  });
}

// One piece of the pre-tokeniser's.
void Encoder::encode_piece(const Byte* begin, const Byte* end, const Byte* text_end, WordCache& cache,
                           IdBuffer& ids) const {
  const size_t bytes = end - begin, before = ids.size();
  if (bytes > WordCache::MOST_BYTES) return merge_piece(begin, end, ids);
  const WordCache::Key key = WordCache::key_of(begin, bytes, text_end);
  if (const WordCache::Entry* known = cache.find(key)) {
    std::memcpy(ids.room(WordCache::MOST_IDS), known->ids, sizeof known->ids);
    return ids.grow(known->count);
  }
  merge_piece(begin, end, ids);
  const size_t count = ids.size() - before;
  if (count <= WordCache::MOST_IDS) cache.remember(key, ids.data() + before, count);
}

// The whole text is one piece. It is cut all the same where no merge could join what is left and right of the cut, which
// for SentencePiece's vocabularies is in front of nearly every word.
void Encoder::encode_uncut(const Byte* begin, const Byte* end, WordCache& cache, IdBuffer& ids) const {
  if (options_.ignore_merges) {
    if (const Id id = vocabulary_.find(as_text(begin, end)); id >= 0) return ids.push_back(id);
  }
  const bool bytes = vocabulary_.alphabet() == Alphabet::bytes;
  const auto letter = [&](const Byte* p) { return bytes ? Character{*p, 1} : character_at(p, end); };
  Character last = letter(begin);
  for (const Byte* p = begin + last.length; p < end; p += last.length) {
    const Character next = letter(p);
    if (!vocabulary_.may_join(last.code, next.code)) {
      encode_piece(begin, p, end, cache, ids);
      begin = p;
    }
    last = next;
  }
  encode_piece(begin, end, end, cache, ids);
}

void Encoder::merge_piece(const Byte* begin, const Byte* end, IdBuffer& ids) const {
  // Short pieces are remembered, so that merging them once costs less than looking for each that is new.
  if (options_.ignore_merges || end - begin > ptrdiff_t{WordCache::MOST_BYTES}) {
    const Id token = vocabulary_.find(as_text(begin, end));
    if (token >= 0 && whole_[token]) return ids.push_back(token);
  }
  const size_t from = ids.size();
  append_symbols(begin, end, ids);
  merge(vocabulary_, ids, from);
}

void Encoder::append_symbols(const Byte* begin, const Byte* end, IdBuffer& ids) const {
  const auto append_bytes = [&](const Byte* from, const Byte* to) {
    Id* room = ids.room(to - from);
    for (const Byte* p = from; p < to; ++p) *room++ = vocabulary_.byte_id(*p);
    ids.grow(to - from);
  };
  if (vocabulary_.alphabet() == Alphabet::bytes) return append_bytes(begin, end);
  while (begin < end) {
    const Byte* next = begin + character_at(begin, end).length;
    const Id id = vocabulary_.find(as_text(begin, next));
    if (id >= 0) {
      ids.push_back(id);
    } else {
      append_bytes(begin, next);
    }
    begin = next;
  }
}

std::string Encoder::with_metaspace(std::string_view stretch, bool first) const {
  std::string marked;
  marked.reserve(stretch.size() + stretch.size() / 2);
  const bool begins_with_it = stretch[0] == ' ' || stretch.starts_with(SPACE_MARK);
  const Metaspace rule = options_.metaspace;
  if (rule == Metaspace::prepend || (rule == Metaspace::always && !begins_with_it) ||
      (rule == Metaspace::first && first && !begins_with_it)) {
    marked += SPACE_MARK;
  }
  for (size_t at = 0; at < stretch.size();) {
    const size_t space = std::min(stretch.find(' ', at), stretch.size());
    marked += stretch.substr(at, space - at);
    if (space < stretch.size()) marked += SPACE_MARK;
    at = space + 1;
  }
  return marked;
}

// Whether a piece of the token's bytes is looked up and is the token. With ignore_merges each is, where the pattern cuts
// pieces at all; else merges decide, and only what is too long for the cache is looked up.
bool Encoder::is_whole(Id id) const {
  if (options_.ignore_merges) return options_.pattern != Pattern::none;
  const std::string& token = vocabulary_.token(id);
  if (token.size() <= WordCache::MOST_BYTES) return false;
  IdBuffer ids;
  const auto* bytes = reinterpret_cast<const Byte*>(token.data());
  append_symbols(bytes, bytes + token.size(), ids);
  merge(vocabulary_, ids, 0);
  return ids.size() == 1;
}

// What a token stands for in the text.
std::string Encoder::decoded(Id id) const {
  std::string text = vocabulary_.token(id);
  if (vocabulary_.alphabet() == Alphabet::characters_bytes) {
    if (const int byte = byte_of_token(text); byte >= 0) return std::string(1, static_cast<char>(byte));
  }
  if (options_.metaspace != Metaspace::none && !specials_.name_of(id)) {
    for (size_t at = 0; (at = text.find(SPACE_MARK, at)) != text.npos; ++at) text.replace(at, SPACE_MARK.size(), " ");
  }
  return text;
}

std::string Encoder::decode(std::span<const int64_t> ids) const {
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) {
    const int64_t id = ids[i];
    if (id >= 0 && id < static_cast<int64_t>(decoded_.size()) && !decoded_[id].empty()) {
      text += decoded_[id];
    } else if (const std::string* name = id == static_cast<Id>(id) ? specials_.name_of(id) : nullptr) {
      text += *name;
    } else {
      throw std::invalid_argument("ids[" + std::to_string(i) + "] = " + std::to_string(id) +
                                  " is no token; there are " + std::to_string(decoded_.size()) + " ids");
    }
  }
  return text;
}

}  // namespace minigpt::tokenizer
