#include "weights.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

namespace minigpt::decoder {
namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

Weights::Weights(const Shape& s, WeightFormat format) : layers(s.n_layer), format_(format) {
  add_matrix("wte.weight", {&embedding}, s.V, s.C);
  for (int64_t i = 0; i < s.n_layer; ++i) {
    Layer& layer = layers[i];
    const std::string name = "h." + std::to_string(i) + ".";
    add_norm(name + "ln_1", layer.ln_1, s);
    add_linear(name + "attn.c_attn", {&layer.qkv}, s.qkv_width(), s.C, s.qkv_bias);
    add_linear(name + "attn.c_proj", {&layer.attention_out}, s.C, s.H * s.D, s.attention_bias);
    if (s.qk_norm) {
      add_numbers(name + "attn.q_norm.weight", layer.q_norm, 1, s.D);
      add_numbers(name + "attn.k_norm.weight", layer.k_norm, 1, s.D);
    }
    add_norm(name + "ln_2", layer.ln_2, s);
    if (s.activation == Activation::swiglu)
      add_linear(name + "mlp.c_fc", {&layer.fc, &layer.up}, 2 * s.F, s.C, s.mlp_bias);
    else
      add_linear(name + "mlp.c_fc", {&layer.fc}, s.F, s.C, s.mlp_bias);
    add_linear(name + "mlp.c_proj", {&layer.mlp_out}, s.C, s.F, s.mlp_bias);
  }
  add_norm("ln_f", ln_f, s);
  if (!s.tied_head) add_matrix("lm_head.weight", {&head}, s.V, s.C);
  if (s.positions == Positions::added) add_numbers("added", added, 0, s.C);
  if (s.positions == Positions::rope) {
    add_numbers("cos", cos, 0, s.rope_half);
    add_numbers("sin", sin, 0, s.rope_half);
  }
  if (s.positions == Positions::alibi) add_numbers("alibi_slopes", alibi_slopes, 1, s.H);

  for (auto& [name, slot] : slots_)
    for (PackedMatrix* matrix : slot.matrices)
      packed_bytes_ += aligned(decoder::packed_bytes(format, matrix->N, matrix->K));
  memory_ = allocate(packed_bytes_);
  // In the order in which a token reads them.
  std::byte* next = memory_.get();
  const auto place = [&](PackedMatrix& matrix) {
    matrix.data = next;
    next += aligned(decoder::packed_bytes(format, matrix.N, matrix.K));
  };
  for (Layer& layer : layers) {
    for (Linear* linear : {&layer.qkv, &layer.attention_out, &layer.fc}) place(linear->matrix);
    if (s.activation == Activation::swiglu) place(layer.up.matrix);
    place(layer.mlp_out.matrix);
  }
  place(embedding);
  if (s.tied_head)
    head = embedding;
  else
    place(head);
}

void Weights::add_matrix(const std::string& name, std::vector<PackedMatrix*> matrices, int64_t rows, int64_t columns) {
  for (PackedMatrix* matrix : matrices) *matrix = {format_, rows / int64_t(matrices.size()), columns, nullptr};
  slots_[name] = {.matrices = std::move(matrices), .rows = rows, .columns = columns};
}

void Weights::add_numbers(const std::string& name, Numbers& numbers, int64_t rows, int64_t columns) {
  slots_[name] = {.parts = {&numbers}, .rows = rows, .columns = columns};
}

void Weights::add_norm(const std::string& name, NormWeights& norm, const Shape& shape) {
  add_numbers(name + ".weight", norm.weight, 1, shape.C);
  if (shape.norm_bias) add_numbers(name + ".bias", norm.bias, 1, shape.C);
}

void Weights::add_linear(const std::string& name, std::vector<Linear*> linears, int64_t rows, int64_t columns,
                         bool bias) {
  Slot biases{.rows = 1, .columns = rows};
  std::vector<PackedMatrix*> matrices;
  for (Linear* linear : linears) {
    matrices.push_back(&linear->matrix);
    biases.parts.push_back(&linear->bias);
  }
  add_matrix(name + ".weight", std::move(matrices), rows, columns);
  if (bias) slots_[name + ".bias"] = std::move(biases);
}

void Weights::load(const std::string& name, const float* values, int64_t rows, int64_t columns, ThreadPool& pool) {
  const auto found = slots_.find(name);
  if (found == slots_.end()) throw std::invalid_argument(name + " is not a part of this model");
  Slot& slot = found->second;
  if (columns != slot.columns || (slot.rows && rows != slot.rows) || rows < 1)
    throw std::invalid_argument(name + " must be (" + (slot.rows ? std::to_string(slot.rows) : "positions") + ", " +
                                std::to_string(slot.columns) + "), not (" + std::to_string(rows) + ", " +
                                std::to_string(columns) + ")");
  std::atomic<bool> finite = true;
  for (const PackedMatrix* matrix : slot.matrices) {
    const int64_t panels = panel_count(matrix->N), threads = pool.threads();
    auto* const out = memory_.get() + (matrix->data - memory_.get());
    pool.run([&](int thread) {
      const int64_t begin = panels * thread / threads * panel_rows;
      const int64_t end = std::min(matrix->N, panels * (thread + 1) / threads * panel_rows);
      if (begin < end && !pack_rows(format_, values, matrix->N, matrix->K, begin, end, out)) finite = false;
    });
    values += matrix->N * matrix->K;
  }
  if (!finite)
    throw std::invalid_argument(name + " holds inf or NaN, which " + (format_ == WeightFormat::int8 ? "int8" : "int4") +
                                " has no numbers for; fp32 and bf16 keep them as they are");
  const int64_t share = slot.parts.empty() ? 0 : rows * columns / int64_t(slot.parts.size());
  for (Numbers* part : slot.parts) {
    part->assign(values, values + share);
    values += share;
  }
  slot.loaded = true;
}

std::vector<std::string> Weights::missing() const {
  std::vector<std::string> names;
  for (const auto& [name, slot] : slots_)
    if (!slot.loaded) names.push_back(name);
  return names;
}

int64_t Weights::bytes() const {
  int64_t bytes = packed_bytes_;
  for (const auto& [name, slot] : slots_)
    for (const Numbers* part : slot.parts) bytes += int64_t(part->size() * sizeof(float));
  return bytes;
}

}  // namespace minigpt::decoder
