#include "word_counts.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <system_error>
#include <thread>

#include "hash.h"

namespace minigpt::tokenizer {

namespace {

// Open addressing, at most half full.
class WordTable {
 public:
  WordTable() : slots_(1 << 12) {}

  void add(std::string_view word, uint64_t hash, uint64_t count) {
    if (2 * used_ >= slots_.size()) grow();
    WordCount& slot = place(word, hash);
    if (slot.count == 0) {
      slot = {word, hash, 0};
      ++used_;
    }
    slot.count += count;
  }

  std::vector<WordCount> words() const {
    std::vector<WordCount> words;
    words.reserve(used_);
    std::copy_if(slots_.begin(), slots_.end(), std::back_inserter(words), [](const auto& slot) { return slot.count; });
    return words;
  }

 private:
  WordCount& place(std::string_view word, uint64_t hash) {
    const size_t mask = slots_.size() - 1;
    size_t i = hash & mask;
    while (slots_[i].count && (slots_[i].hash != hash || slots_[i].word != word)) i = (i + 1) & mask;
    return slots_[i];
  }

  void grow() {
    std::vector<WordCount> old(2 * slots_.size());
    old.swap(slots_);
    for (const WordCount& slot : old) {
      if (slot.count) place(slot.word, slot.hash) = slot;
    }
  }

  std::vector<WordCount> slots_;
  size_t used_ = 0;
};

// Parts of about a megabyte. A text is only cut in front of a newline between two ASCII characters that are no spaces:
// every pattern cuts there, and looks at neither side for the other.
std::vector<std::string_view> cut_into_parts(const std::vector<std::string_view>& texts, Pattern pattern) {
  constexpr size_t size = 1 << 20;
  const auto visible = [](char c) { return c > ' ' && c < 0x7F; };
  std::vector<std::string_view> parts;
  for (std::string_view text : texts) {
    while (text.size() > size && pattern != Pattern::none) {
      size_t cut = text.find('\n', size);
      while (cut < text.size() && !(cut + 1 < text.size() && visible(text[cut - 1]) && visible(text[cut + 1]))) {
        cut = text.find('\n', cut + 1);
      }
      if (cut >= text.size()) break;
      parts.push_back(text.substr(0, cut + 1));
      text.remove_prefix(cut + 1);
    }
    parts.push_back(text);
  }
  return parts;
}

}  // namespace

std::vector<WordCount> count_words(const std::vector<std::string_view>& texts, Pattern pattern, int n_threads) {
  const std::vector<std::string_view> parts = cut_into_parts(texts, pattern);
  std::atomic<size_t> next_part = 0;
  size_t bytes = 0;
  for (std::string_view text : texts) bytes += text.size();
  const size_t worth_a_thread = 1 << 16;  // bytes
  std::vector<WordTable> tables(std::clamp<size_t>(bytes / worth_a_thread, 1, n_threads));
  std::vector<std::exception_ptr> errors(tables.size());
  const auto work = [&](size_t thread) noexcept {
    try {
      for (size_t part; (part = next_part++) < parts.size();) {
        const auto* begin = reinterpret_cast<const Byte*>(parts[part].data());
        for_each_piece(pattern, begin, begin + parts[part].size(), [&](const Byte* from, const Byte* to) {
          const std::string_view word(reinterpret_cast<const char*>(from), to - from);
          tables[thread].add(word, hash_bytes(word), 1);
        });
      }
    } catch (...) {
      errors[thread] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(tables.size());
  try {
    for (size_t thread = 1; thread < tables.size(); ++thread) threads.emplace_back(work, thread);
  } catch (const std::system_error&) {
    // The system gives no more of them: those that there are do all of the work.
  }
  work(0);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  for (size_t thread = 1; thread < tables.size(); ++thread) {
    for (const WordCount& word : tables[thread].words()) tables[0].add(word.word, word.hash, word.count);
  }
  return tables[0].words();
}

}  // namespace minigpt::tokenizer
