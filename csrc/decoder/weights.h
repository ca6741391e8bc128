// The numbers of a GPT as the decode engine keeps them: matrices packed in one block of memory, vectors as floats.
#pragma once
#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "memory.h"
#include "packed_matrix.h"
#include "thread_pool.h"

namespace minigpt::decoder {

enum class Norm { layer_norm, rms_norm };
enum class Activation { gelu_tanh, gelu, relu_squared, swiglu };
enum class Positions { none, added, rope, alibi };  // added: learned or sinusoidal

// What GPTConfig says, with every default filled in.
struct Shape {
  int64_t V, C, n_layer, H, H_kv, D,
      F;  // vocabulary, width, layers, heads, key/value heads, width of a head, of the MLP
  Norm norm;
  double eps;
  Activation activation;
  Positions positions;
  int64_t rope_half;  // pairs of a head that rotate
  bool qk_norm, norm_bias, qkv_bias, attention_bias, mlp_bias, tied_head;
  double attention_softcap, logit_softcap;  // 0: none
  std::vector<int64_t> windows;             // of each layer; 0: none

  int64_t qkv_width() const { return (H + 2 * H_kv) * D; }
};

// A vector, or a table of rows; null where the model has none.
using Numbers = std::vector<float>;
inline const float* or_null(const Numbers& numbers) { return numbers.empty() ? nullptr : numbers.data(); }

struct NormWeights {
  Numbers weight, bias;
};

struct Linear {
  PackedMatrix matrix;
  Numbers bias;
};

struct Layer {
  NormWeights ln_1, ln_2;
  Linear qkv, attention_out, fc, mlp_out;  // fc makes the gate where the activation is swiglu
  Linear up;                               // swiglu alone
  Numbers q_norm, k_norm;                  // (D,)
};

class Weights {
 public:
  // Throws std::bad_alloc where there is no memory for them.
  Weights(const Shape& shape, WeightFormat format);
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  // Packs or copies values (rows, columns), a parameter by its name in the model's state_dict; of a vector rows is 1. The
  // tables that a config determines have names too: "cos", "sin" (positions, rope_half), "added" (positions, C) and
  // "alibi_slopes". Throws std::invalid_argument for an unknown name, another shape, or a matrix that is not finite where
  // the format is one of integers.
  void load(const std::string& name, const float* values, int64_t rows, int64_t columns, ThreadPool& pool);

  // Names of what has not been loaded yet.
  std::vector<std::string> missing() const;
  // What all of them take, tables included.
  int64_t bytes() const;

  std::vector<Layer> layers;
  NormWeights ln_f;
  PackedMatrix embedding, head;  // the same one where the head is tied
  Numbers added, cos, sin, alibi_slopes;

 private:
  struct Slot {
    std::vector<PackedMatrix*> matrices = {};  // they share the rows evenly
    std::vector<Numbers*> parts = {};          // or these share the numbers
    int64_t rows = 0, columns = 0;             // rows 0: any number of them
    bool loaded = false;
  };

  void add_matrix(const std::string& name, std::vector<PackedMatrix*> matrices, int64_t rows, int64_t columns);
  void add_numbers(const std::string& name, Numbers& numbers, int64_t rows, int64_t columns);
  void add_norm(const std::string& name, NormWeights& norm, const Shape& shape);
  void add_linear(const std::string& name, std::vector<Linear*> linears, int64_t rows, int64_t columns, bool bias);

  WeightFormat format_;
  std::map<std::string, Slot> slots_;
  Memory memory_;
  int64_t packed_bytes_ = 0;
};

}  // namespace minigpt::decoder
