#include "decoder.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "../common/parallel.h"
#include "../gelu/gelu.h"
#include "../layer_norm/layer_norm.h"
#include "../relu_squared/relu_squared.h"
#include "../rms_norm/rms_norm.h"
#include "../swiglu/swiglu.h"
#include "matmul.h"

namespace minigpt::decoder {

Decoder::Decoder(const Shape& shape, WeightFormat format, int threads)
    : shape_(shape),
      process_(getpid()),
      pool_(std::make_unique<ThreadPool>(threads)),
      format_(format),
      weights_(shape, format),
      buffer_rows_(std::max<int64_t>(max_rows, threads)) {
  const Shape& s = shape_;
  const int64_t rows = buffer_rows_;
  for (Numbers* each : {&x_, &normed_, &product_}) each->resize(rows * s.C);
  stats_.resize(rows * (2 + s.H));
  qkv_.resize(rows * s.qkv_width());
  if (s.qk_norm || s.rope_half) {
    q_.resize(rows * s.H * s.D);
    k_.resize(rows * s.H_kv * s.D);
  }
  attended_.resize(rows * s.H * s.D);
  rounded_.resize(rows * s.qkv_width());
  attended_rounded_.resize(rows * s.H * s.D);
  inner_.resize(rows * s.F);
  if (s.activation == Activation::swiglu) gated_.resize(rows * 2 * s.F);
  partial_out_.resize(partial_rows * s.H * s.D);
  partial_stats_.resize(partial_rows * s.H * 2);
  lse_.resize(threads * s.H * query_run);
  for (int64_t K : {s.C, s.H * s.D, s.F}) {
    input_bytes_ = std::max(input_bytes_, input_bytes(format, max_rows, K));
    own_input_bytes_ = std::max(own_input_bytes_, (input_bytes(format, 1, K) + 63) / 64 * 64);
  }
  input_ = allocate(input_bytes_);
  own_input_ = allocate(threads * own_input_bytes_);
  positions_.resize(max_rows);
  seq_lens_.resize(max_rows);
  seq_lens_after_.resize(max_rows);
}

// The threads are not there in a child that was forked: nothing can be told to them, or be waited for.
Decoder::~Decoder() {
  if (getpid() != process_) (void)pool_.release();
}

void Decoder::check_process() const {
  if (getpid() != process_)
    throw std::runtime_error("this decoder's threads are in the process that made it: make one in this process too");
}

void Decoder::load(const std::string& name, const float* values, int64_t rows, int64_t columns) {
  check_process();
  weights_.load(name, values, rows, columns, *pool_);
}

int64_t Decoder::buffer_bytes() const {
  int64_t floats = 0;
  for (const Numbers* each : {&x_, &normed_, &stats_, &qkv_, &q_, &k_, &attended_, &product_, &inner_, &gated_,
                              &partial_out_, &partial_stats_, &lse_})
    floats += int64_t(each->size());
  const int64_t halves = int64_t(rounded_.size() + attended_rounded_.size());
  return floats * 4 + halves * 2 + input_bytes_ + threads() * own_input_bytes_ + 3 * 4 * max_rows;
}

void Decoder::read(const Chunk& chunk, const Cache& cache, const Logits& logits) {
  check_process();
  chunk_ = chunk, cache_ = &cache, logits_ = logits;
  for (int64_t row = 0; row < chunk.rows(); ++row) positions_[row] = int32_t(chunk.start + row % chunk.T);
  for (int64_t b = 0; b < chunk.B; ++b) {
    seq_lens_[b] = int32_t(chunk.start);
    seq_lens_after_[b] = int32_t(chunk.start + chunk.T);
  }
  const bool moved = shape_.qk_norm || shape_.rope_half;
  const int64_t width = shape_.qkv_width(), q_width = shape_.H * shape_.D, k_width = shape_.H_kv * shape_.D;
  q_rows_ = moved ? Rows{q_.data(), q_width} : Rows{qkv_.data(), width};
  k_rows_ = moved ? Rows{k_.data(), k_width} : Rows{qkv_.data() + q_width, width};
  v_rows_ = {qkv_.data() + q_width + k_width, width};
  const auto placed = [&](const Rows<float>& rows, int64_t offset) -> Placed {
    if (rounded()) return {reinterpret_cast<const std::byte*>(rounded_.data() + offset), width, sizeof(bfloat16)};
    return {reinterpret_cast<const std::byte*>(rows.data), rows.stride, sizeof(float)};
  };
  queries_ = placed(q_rows_, 0);
  keys_ = placed(k_rows_, q_width);
  values_ = placed(v_rows_, q_width + k_width);
  pool_->run([&](int thread) {
    const Alone alone;  // what is called of the ops' kernels runs on this thread
    embed(thread);
    for (int64_t i = 0; i < shape_.n_layer; ++i) {
      attention_block(weights_.layers[i], i, thread);
      mlp_block(weights_.layers[i], thread);
    }
    if (logits_.out) head(thread);
  });
}

void Decoder::embed(int thread) {
  const int64_t C = shape_.C, M = chunk_.rows();
  for (int64_t row = begin_of(M, thread); row < begin_of(M, thread + 1); ++row) {
    float* x = x_.data() + row * C;
    unpack_row(weights_.embedding, chunk_.ids[row / chunk_.T * chunk_.id_stride + row % chunk_.T], x);
    if (shape_.positions != Positions::added) continue;
    const float* added = weights_.added.data() + positions_[row] * C;
    for (int64_t i = 0; i < C; ++i) x[i] += added[i];
  }
  pool_->barrier();
}

void Decoder::normalise(const float* x, int64_t rows, const NormWeights& norm, float* y, float* stats) const {
  if (shape_.norm == Norm::layer_norm) {
    layer_norm_forward_cpu({.rows = rows,
                            .C = shape_.C,
                            .dtype = DType::f32,
                            .weight_dtype = DType::f32,
                            .x = x,
                            .weight = norm.weight.data(),
                            .bias = or_null(norm.bias),
                            .eps = shape_.eps,
                            .y = y,
                            .mean = stats,
                            .rstd = stats + rows});
  } else {
    rms_norm_forward_cpu({.rows = rows,
                          .C = shape_.C,
                          .dtype = DType::f32,
                          .weight_dtype = DType::f32,
                          .x = x,
                          .layout = {1, 0, shape_.C},
                          .weight = norm.weight.data(),
                          .eps = shape_.eps,
                          .y = y,
                          .rstd = stats});
  }
}

const std::byte* Decoder::input_of(const float* x, int64_t M, int64_t K, const NormWeights* norm, int thread) {
  const bool own = M == 1;
  const int64_t begin = own ? 0 : begin_of(M, thread), end = own ? 1 : begin_of(M, thread + 1);
  std::byte* const input = own ? own_input_.get() + thread * own_input_bytes_ : input_.get();
  if (begin < end) {
    if (norm) {
      const int64_t place = own ? thread : begin;  // of this thread's rows in the buffers
      normalise(x + begin * K, end - begin, *norm, normed_.data() + place * K, stats_.data() + place * 2);
      x = normed_.data() + (place - begin) * K;
    }
    prepare_input(format_, x, K, K, begin, end, input);
  }
  if (!own) pool_->barrier();
  return input;
}

void Decoder::add_product(const Linear& linear, const std::byte* input, int thread) {
  const int64_t M = chunk_.rows(), C = shape_.C, begin = share_begin(linear.matrix, thread, pool_->threads()),
                end = share_begin(linear.matrix, thread + 1, pool_->threads());
  multiply(linear.matrix, input, M, or_null(linear.bias), product_.data(), C, begin, end);
  for (int64_t row = 0; row < M; ++row)
    for (int64_t i = row * C + begin; i < row * C + end; ++i) x_[i] += product_[i];
  pool_->barrier();
}

void Decoder::attention_block(const Layer& layer, int64_t index, int thread) {
  const int64_t M = chunk_.rows(), threads = pool_->threads();
  const PackedMatrix& qkv = layer.qkv.matrix;
  multiply(qkv, input_of(x_.data(), M, shape_.C, &layer.ln_1, thread), M, or_null(layer.qkv.bias), qkv_.data(), qkv.N,
           share_begin(qkv, thread, threads), share_begin(qkv, thread + 1, threads));
  pool_->barrier();
  place_keys(layer, index, thread);
  attend(index, thread);
  add_product(layer.attention_out, input_of(attended(thread), M, shape_.H * shape_.D, nullptr, thread), thread);
}

void Decoder::activate(float* y, int64_t n) const {
  if (shape_.activation == Activation::relu_squared)
    relu_squared_forward_cpu({.n = n, .dtype = DType::f32, .x = y, .y = y});
  else
    gelu_forward_cpu({.n = n, .dtype = DType::f32, .tanh = shape_.activation == Activation::gelu_tanh, .x = y, .y = y});
}

void Decoder::mlp_block(const Layer& layer, int thread) {
  const int64_t M = chunk_.rows(), F = shape_.F;
  const std::byte* input = input_of(x_.data(), M, shape_.C, &layer.ln_2, thread);
  const int64_t begin = share_begin(layer.fc.matrix, thread, pool_->threads()),
                end = share_begin(layer.fc.matrix, thread + 1, pool_->threads()), n = end - begin;
  if (shape_.activation == Activation::swiglu) {
    // This thread's columns alone, row by row: n of the gate, then n of the other. multiply() counts columns from 0.
    float* const pairs = gated_.data() + M * 2 * begin;
    multiply(layer.fc.matrix, input, M, or_null(layer.fc.bias), pairs - begin, 2 * n, begin, end);
    multiply(layer.up.matrix, input, M, or_null(layer.up.bias), pairs + n - begin, 2 * n, begin, end);
    for (int64_t row = 0; row < M && n; ++row)
      swiglu_forward_cpu({1, n, DType::f32, pairs + row * 2 * n, inner_.data() + row * F + begin});
  } else {
    multiply(layer.fc.matrix, input, M, or_null(layer.fc.bias), inner_.data(), F, begin, end);
    for (int64_t row = 0; row < M && n; ++row) activate(inner_.data() + row * F + begin, n);
  }
  pool_->barrier();
  add_product(layer.mlp_out, input_of(inner_.data(), M, F, nullptr, thread), thread);
}

void Decoder::head(int thread) {
  const int64_t V = shape_.V, C = shape_.C, T = chunk_.T, threads = pool_->threads();
  const int64_t begin = share_begin(weights_.head, thread, threads),
                end = share_begin(weights_.head, thread + 1, threads);
  const auto logits = [&](const float* x, int64_t M, float* out, int64_t stride) {
    multiply(weights_.head, input_of(x, M, C, &weights_.ln_f, thread), M, nullptr, out, stride, begin, end);
    if (shape_.logit_softcap) {
      const float cap = float(shape_.logit_softcap);
      for (int64_t row = 0; row < M; ++row)
        for (int64_t i = row * stride + begin; i < row * stride + end; ++i) out[i] = cap * std::tanh(out[i] / cap);
    }
    pool_->barrier();
  };
  if (logits_.every) {
    for (int64_t b = 0; b < chunk_.B; ++b) logits(x_.data() + b * T * C, T, logits_.out + b * logits_.stride, V);
    return;
  }
  if (T > 1) {  // the last tokens' rows, side by side
    for (int64_t b = begin_of(chunk_.B, thread); b < begin_of(chunk_.B, thread + 1); ++b)
      memcpy(product_.data() + b * C, x_.data() + (b * T + T - 1) * C, C * sizeof(float));
    pool_->barrier();
  }
  logits(T > 1 ? product_.data() : x_.data(), chunk_.B, logits_.out, logits_.stride);
}

}  // namespace minigpt::decoder
