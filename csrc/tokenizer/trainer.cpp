#include "trainer.h"

#include <algorithm>
#include <queue>
#include <stdexcept>
#include <unordered_map>

#include "word_counts.h"

namespace minigpt::tokenizer {

namespace {

using Pair = uint64_t;  // left << 32 | right: pairs compare as their ids do
using Rank = uint32_t;  // a token's number while training: bytes in GPT-2's order, which ties are decided by

Pair pair_of(Rank left, Rank right) { return static_cast<Pair>(left) << 32 | right; }

// GPT-2's numbers for bytes: first those that Latin-1 shows.
std::vector<int> bytes_in_order() {
  std::vector<int> order(256);
  for (int byte = 0; byte < 256; ++byte) order[byte] = byte;
  std::stable_partition(order.begin(), order.end(),
                        [](int b) { return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE; });
  return order;
}

// A pair in the queue. `words` are those in which it appeared when it was put there.
struct Candidate {
  int64_t count;
  Pair pair;
  std::vector<uint32_t> words;
};

struct Later {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.count != b.count ? a.count < b.count : a.pair > b.pair;
  }
};

class Trainer {
 public:
  Trainer(const std::vector<WordCount>& words, const std::vector<int>& order) {
    std::vector<Rank> rank(256);
    for (Rank r = 0; r < 256; ++r) rank[order[r]] = r;
    for (const WordCount& word : words) {
      words_.push_back({symbols_.size(), word.word.size(), static_cast<int64_t>(word.count)});
      for (char c : word.word) symbols_.push_back(rank[static_cast<Byte>(c)]);
    }
    for (int byte : order) add_token(std::string(1, static_cast<char>(byte)));
    for (uint32_t w = 0; w < words_.size(); ++w) {
      const Rank* symbols = &symbols_[words_[w].begin];
      for (size_t i = 0; i + 1 < words_[w].length; ++i) count_pair(symbols[i], symbols[i + 1], 1, w);
    }
    queue_new_pairs();
  }

  void run(size_t vocabulary_size, int64_t min_frequency) {
    while (tokens.size() < vocabulary_size && !queue_.empty()) {
      Candidate best = std::move(const_cast<Candidate&>(queue_.top()));
      queue_.pop();
      const int64_t count = pairs_[best.pair].count;
      if (best.count != count) {  // merges beside it took some away
        best.count = count;
        queue_.push(std::move(best));
        continue;
      }
      if (count < std::max<int64_t>(min_frequency, 1)) break;
      merge(best);
    }
  }

  std::vector<std::string> tokens;
  std::vector<Pair> merges;

 private:
  struct Word {
    size_t begin, length;  // in symbols_
    int64_t count;
  };

  struct PairInfo {
    int64_t count = 0;
    std::vector<uint32_t> new_words;  // since the last merge
  };

  // The number of the token of these bytes, which may be there already: "a" + "bc" after "ab" + "c".
  Rank add_token(const std::string& token) {
    const auto [place, is_new] = by_bytes_.emplace(token, tokens.size());
    if (is_new) tokens.push_back(token);
    return place->second;
  }

  void count_pair(Rank left, Rank right, int times, uint32_t word) {
    const Pair pair = pair_of(left, right);
    PairInfo& info = pairs_[pair];
    info.count += times * words_[word].count;
    if (times < 0) return;
    if (info.new_words.empty()) new_pairs_.push_back(pair);
    if (info.new_words.empty() || info.new_words.back() != word) info.new_words.push_back(word);
  }

  void queue_new_pairs() {
    for (Pair pair : new_pairs_) {
      PairInfo& info = pairs_[pair];
      if (info.count > 0) queue_.push({info.count, pair, std::move(info.new_words)});
      info.new_words = {};
    }
    new_pairs_.clear();
  }

  void merge(const Candidate& best) {
    const Rank left = best.pair >> 32, right = static_cast<Rank>(best.pair);
    const Rank merged = add_token(tokens[left] + tokens[right]);
    merges.push_back(best.pair);
    for (uint32_t word : best.words) merge_in_word(word, left, right, merged);
    queue_new_pairs();
  }

  void merge_in_word(uint32_t w, Rank left, Rank right, Rank merged) {
    Word& word = words_[w];
    Rank* symbols = &symbols_[word.begin];
    size_t kept = 0;
    for (size_t i = 0; i < word.length; ++i) {
      if (symbols[i] != left || i + 1 == word.length || symbols[i + 1] != right) {
        symbols[kept++] = symbols[i];
        continue;
      }
      if (kept > 0) {
        count_pair(symbols[kept - 1], left, -1, w);
        count_pair(symbols[kept - 1], merged, 1, w);
      }
      if (++i + 1 < word.length) {
        count_pair(right, symbols[i + 1], -1, w);
        count_pair(merged, symbols[i + 1], 1, w);
      }
      symbols[kept++] = merged;
    }
    word.length = kept;
  }

  std::vector<Word> words_;
  std::vector<Rank> symbols_;
  std::unordered_map<std::string, Rank> by_bytes_;
  std::unordered_map<Pair, PairInfo> pairs_;
  std::vector<Pair> new_pairs_;
  std::priority_queue<Candidate, std::vector<Candidate>, Later> queue_;
};

}  // namespace

Trained train(const std::vector<std::string_view>& texts, size_t vocabulary_size, Pattern pattern, int n_threads,
              uint64_t min_frequency) {
  if (vocabulary_size < 256) {
    throw std::invalid_argument("vocab_size must be 256 or more, since every byte is a token, got " +
                                std::to_string(vocabulary_size));
  }
  const std::vector<int> order = bytes_in_order();
  Trainer trainer(count_words(texts, pattern, n_threads), order);
  trainer.run(vocabulary_size, static_cast<int64_t>(std::min<uint64_t>(min_frequency, INT64_MAX)));
  Trained trained{std::move(trainer.tokens), {}};
  for (int byte = 0; byte < 256; ++byte) trained.tokens[byte] = std::string(1, static_cast<char>(byte));
  const auto id = [&](Rank rank) { return rank < 256 ? order[rank] : static_cast<Id>(rank); };
  // A pair may come again, where its token was made in another way too: its last time is what counts.
  std::unordered_map<Pair, size_t> last;
  for (size_t i = 0; i < trainer.merges.size(); ++i) last[trainer.merges[i]] = i;
  for (size_t i = 0; i < trainer.merges.size(); ++i) {
    const Pair pair = trainer.merges[i];
    if (last[pair] == i) trained.merges.emplace_back(id(pair >> 32), id(static_cast<Rank>(pair)));
  }
  return trained;
}

}  // namespace minigpt::tokenizer
