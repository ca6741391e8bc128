// The decode engine: a GPT whose weights were packed once, and one call a step that runs all layers.
//
// A call reads M rows: T new tokens of each of B sequences, sequence by sequence. Its threads go through the layers
// together, each with its share of a matrix's columns, and meet at barriers:
//
//   norm; qkv          | qk norm, rope, append to the cache | attention [| merge] | projection, residual
//   norm; fc, activation                                                          | projection, residual
//
// What comes before a matrix (a norm, the input's conversion) every thread does for itself where there is one row, and for
// a share of the rows, with one more barrier, where there are more. Sums do not depend on the number of threads.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "../common/dtype.h"
#include "../decode_attention/decode_attention.h"
#include "thread_pool.h"
#include "weights.h"

namespace minigpt::decoder {

// A KVCache: keys and values of each layer (n_blocks, block_size, H_kv, D), and which blocks a sequence's tokens are in.
struct Cache {
  DType dtype;  // f32 or bf16: of queries, keys and values as attention is handed them
  std::vector<void*> k, v;
  std::vector<float*> k_scales,
      v_scales;  // of int8 caches, whose dtype is f32: (n_blocks, block_size, H_kv); else none
  int64_t n_blocks, block_size, B, max_blocks;
  const int32_t* block_table;  // (B, max_blocks)
};

// Tokens of sequences first ... first + B - 1 of a cache, all of which hold `start` tokens before. ids: (B, T), with
// id_stride from one sequence to the next.
struct Chunk {
  const int64_t* ids;
  int64_t id_stride, first, B, T, start;

  int64_t rows() const { return B * T; }
};

// Where logits go: of each sequence's last token, or of every one. Sequence b's begin at out + b * stride.
struct Logits {
  float* out;  // null: none are wanted
  int64_t stride;
  bool every;
};

class Decoder {
 public:
  static constexpr int64_t max_rows = 256;     // of a chunk
  static constexpr int64_t query_run = 64;     // queries of a prompt that a thread attends with at a time
  static constexpr int64_t partial_rows = 64;  // new tokens times runs of keys, where a long cache is read in runs

  // Throws std::bad_alloc, and std::invalid_argument where threads is below 1.
  Decoder(const Shape& shape, WeightFormat format, int threads);
  ~Decoder();

  void load(const std::string& name, const float* values, int64_t rows, int64_t columns);
  // Reads a chunk of at most max_rows rows; the caller has checked ids, lengths and the cache's shapes. Throws
  // std::runtime_error in a process other than the one that made the engine: its threads are not there.
  void read(const Chunk& chunk, const Cache& cache, const Logits& logits);

  const Shape& shape() const { return shape_; }
  const Weights& weights() const { return weights_; }
  int threads() const { return pool_->threads(); }
  int64_t buffer_bytes() const;
  std::mutex& mutex() { return mutex_; }  // one caller at a time

 private:
  // Queries, or new keys or values, of every row; stride: from one row to the next, in elements.
  template <class T>
  struct Rows {
    T* data;
    int64_t stride;

    T* row(int64_t i) const { return data + i * stride; }
  };
  // What attention reads: of the cache's dtype.
  struct Placed {
    const std::byte* data;
    int64_t stride, element_size;

    const std::byte* row(int64_t i) const { return data + i * stride * element_size; }
  };

  void check_process() const;
  // Each of the following is what one thread does; they end at a barrier unless said otherwise.
  void embed(int thread);
  void attention_block(const Layer& layer, int64_t index, int thread);
  void mlp_block(const Layer& layer, int thread);
  void head(int thread);
  void place_keys(const Layer& layer, int64_t index, int thread);
  void round_rows(int64_t begin, int64_t end);
  void attend(int64_t index, int thread);
  void attend_prompt(int64_t index, int thread);
  void attend_cache(int64_t index, int thread);
  void* attention_out(int64_t row);
  const float* attended(int thread);  // as floats; of one row every thread has its own copy
  PagedLayout layout(bool after) const;

  // The input of a matrix, made of M rows of x (stride K), through a norm if there is one. No barrier behind it.
  const std::byte* input_of(const float* x, int64_t M, int64_t K, const NormWeights* norm, int thread);
  void normalise(const float* x, int64_t rows, const NormWeights& norm, float* y, float* stats) const;
  void add_product(const Linear& linear, const std::byte* input, int thread);  // to the residual stream
  void activate(float* y, int64_t n) const;
  bool in_one_piece() const;  // whether a sequence's blocks of the cache follow each other
  int64_t begin_of(int64_t n, int thread) const { return n * thread / pool_->threads(); }

  const Shape shape_;
  const pid_t process_;
  std::unique_ptr<ThreadPool> pool_;
  const WeightFormat format_;
  Weights weights_;
  std::mutex mutex_;

  // Buffers, made once: rows are max_rows, or one a thread.
  int64_t buffer_rows_, input_bytes_ = 0, own_input_bytes_ = 0;
  Numbers x_, normed_, stats_;      // (rows, C), (rows, C), (rows, 2 + H): the residual stream and its norm
  Numbers qkv_, q_, k_, attended_;  // (rows, (H + 2 H_kv) D), (rows, H D), (rows, H_kv D), (rows, H D)
  std::vector<bfloat16> rounded_, attended_rounded_;  // (rows, (H + 2 H_kv) D), (rows, H D), for a bf16 cache
  Numbers product_, inner_, gated_;                   // (rows, C), (rows, F), (rows, 2 F)
  Numbers partial_out_, partial_stats_;               // of decode attention, where a long cache is cut into runs
  Numbers lse_;                                       // of attention: (threads, H, query_run)
  Memory input_, own_input_;  // the input of a matrix; one for each thread where there is one row
  std::vector<int32_t> positions_, seq_lens_, seq_lens_after_;

  // The call at hand.
  Chunk chunk_{};
  const Cache* cache_ = nullptr;
  Logits logits_{};
  bool rounded() const { return cache_->dtype == DType::bf16; }
  bool quantised() const { return !cache_->k_scales.empty(); }
  Rows<float> q_rows_{}, k_rows_{}, v_rows_{};
  Placed queries_{}, keys_{}, values_{};
};

}  // namespace minigpt::decoder
