#include "common/column_sums.h"
#include "cross_entropy/cross_entropy.h"
#include "dropout/dropout.h"
#include "gelu/gelu.h"
#include "memory_check.h"
#include "relu_squared/relu_squared.h"
#include "rope/rope.h"
#include "swiglu/swiglu.h"

namespace memory_check {
namespace {

constexpr int64_t kSizes[] = {0, 1, 7, 16, 33, 1003, 16385};  // up to one past what a task takes
constexpr int64_t kRows[] = {0, 1, 17, 35}, kColumns[] = {1, 5, 33, 257};

void bias_gelu(DType type, DType bias_type, bool tanh, int64_t rows, int64_t C) {
  say("bias_gelu", name_of(type), name_of(bias_type), "tanh", tanh, "rows", rows, "C", C);
  const int64_t n = rows * C, chunks = column_sum_chunks(rows, false);
  const Block x = Block::filled(type, n, 1), bias = Block::filled(bias_type, C, 2), dy = Block::filled(type, n, 3);
  const Block y(type, n), dx(type, n), dbias(bias_type, C), partial(accumulation(type), chunks * C);
  bias_gelu_forward_cpu(
      {.rows = rows, .C = C, .dtype = type, .bias_dtype = bias_type, .tanh = tanh, .x = x, .bias = bias, .y = y});
  y.check("y");
  bias_gelu_backward_cpu({.rows = rows,
                          .C = C,
                          .dtype = type,
                          .bias_dtype = bias_type,
                          .tanh = tanh,
                          .dy = dy,
                          .x = x,
                          .bias = bias,
                          .dx = dx,
                          .dbias = dbias,
                          .partial = partial,
                          .chunks = chunks});
  dx.check("dx");
  dbias.check("dbias");
}

void dropout(DType type, DType out_type, bool residual, int64_t n) {
  say("dropout", name_of(type), name_of(out_type), "residual", residual, "n", n);
  const Block x = Block::filled(type, n, 1), r = Block::filled(out_type, n, 2), out(out_type, n);
  const auto seed = copy_of<int64_t>({-3});
  dropout_cpu({.n = n,
               .dtype = type,
               .out_dtype = out_type,
               .threshold = 1u << 30,
               .scale = 4.0 / 3,
               .seed = seed.get(),
               .x = x,
               .residual = residual ? static_cast<void*>(r) : nullptr,
               .out = out});
  out.check("out");
}

// half rotated pairs of D; x has `gap` elements between its heads.
void rope(DType type, int64_t D, int64_t half, int64_t gap, bool positions, bool inverse) {
  say("rope", name_of(type), "D", D, "half", half, "gap", gap, "positions", positions, "inverse", inverse);
  constexpr int64_t B = 2, T = 5, H = 3;
  const int64_t n_positions = positions ? 9 : T, head = D + gap;
  const Block x = Block::filled(type, B * T * H * head - gap, 1), y(type, B * T * H * D),
              cos = Block::filled(accumulation(type), n_positions * half, 2),
              sin = Block::filled(accumulation(type), n_positions * half, 3);
  const auto place = copy_of<int32_t>({0, 8, 1, 2, 8, 3, 4, 5, 6, 7});
  rope_cpu({.B = B,
            .T = T,
            .H = H,
            .D = D,
            .half = half,
            .n_positions = n_positions,
            .dtype = type,
            .inverse = inverse,
            .x = x,
            .batch_stride = T * H * head,
            .token_stride = H * head,
            .head_stride = head,
            .cos = cos,
            .sin = sin,
            .positions = positions ? place.get() : nullptr,
            .y = y});
  y.check("y");
}

template <class Id>
void cross_entropy(DType type, int64_t rows, int64_t V, bool gradient) {
  say("cross_entropy", name_of(type), "bytes of an id", sizeof(Id), "rows", rows, "V", V, "gradient", gradient);
  std::vector<Id> ids(rows);
  for (int64_t i = 0; i < rows; ++i) ids[i] = i == 3 ? -100 : i % 2 ? V - 1 : 0;
  const auto targets = copy_of(ids);
  const DType wide = accumulation(type);
  const Block logits = Block::filled(type, rows * V, 1), loss(wide, 1), row_loss(wide, rows), share(wide, 1),
              dlogits(type, rows * V), scaled(type, rows * V), dloss = Block::filled(wide, 1, 2);
  cross_entropy_forward_cpu({.rows = rows,
                             .V = V,
                             .dtype = type,
                             .logits = logits,
                             .targets = targets.get(),
                             .targets_64 = sizeof(Id) == 8,
                             .ignore_index = -100,
                             .loss = loss,
                             .row_loss = row_loss,
                             .share = share,
                             .dlogits = gradient ? static_cast<void*>(dlogits) : nullptr});
  if (rows) loss.check("loss");
  if (!gradient) return;
  dlogits.check("dlogits");
  cross_entropy_backward_cpu({rows * V, type, dlogits, dloss, scaled});
  scaled.check("scaled");
}

}  // namespace

void check_gelu() {
  for (bool tanh : {false, true}) {
    for (DType type : kTypes)
      for (int64_t n : kSizes) {
        say("gelu", name_of(type), "tanh", tanh, "n", n);
        const Block x = Block::filled(type, n, 1), dy = Block::filled(type, n, 2), y(type, n), dx(type, n);
        gelu_forward_cpu({n, type, tanh, x, y});
        y.check("y");
        gelu_backward_cpu({n, type, tanh, dy, x, dx});
        dx.check("dx");
      }
    for (const auto [x, bias] : kPairs)
      for (int64_t rows : kRows)
        for (int64_t C : kColumns) bias_gelu(x, bias, tanh, rows, C);
  }
}

void check_swiglu() {
  for (DType type : kTypes)
    for (int64_t rows : kRows)
      for (int64_t F : kColumns) {
        say("swiglu", name_of(type), "rows", rows, "F", F);
        const Block x = Block::filled(type, rows * 2 * F, 1), dy = Block::filled(type, rows * F, 2), y(type, rows * F),
                    dx(type, rows * 2 * F);
        swiglu_forward_cpu({rows, F, type, x, y});
        y.check("y");
        swiglu_backward_cpu({rows, F, type, dy, x, dx});
        dx.check("dx");
      }
}

void check_relu_squared() {
  for (DType type : kTypes)
    for (int64_t n : kSizes) {
      say("relu_squared", name_of(type), "n", n);
      const Block x = Block::filled(type, n, 1), dy = Block::filled(type, n, 2), y(type, n), dx(type, n);
      relu_squared_forward_cpu({n, type, x, y});
      y.check("y");
      relu_squared_backward_cpu({n, type, dy, x, dx});
      dx.check("dx");
    }
}

void check_dropout() {
  for (const auto [x, out] : kPairs)
    for (bool residual : {false, true})
      for (int64_t n : kSizes) {
        dropout(x, out, residual, n);
        if (x != out && !residual) dropout(out, x, residual, n);
      }
}

void check_rope() {
  for (DType type : kTypes)
    for (const auto& [D, half] : {std::pair{1, 0}, {2, 1}, {9, 4}, {33, 7}, {64, 32}, {65, 32}, {256, 128}})
      for (bool positions : {false, true})
        for (int64_t gap : {0, 3}) rope(type, D, half, gap, positions, /*inverse=*/gap > 0);
}

void check_cross_entropy() {
  for (DType type : kTypes)
    for (int64_t rows : {0, 1, 7})
      for (int64_t V : {1, 2, 65, 130, 4099})
        for (bool gradient : {false, true}) {
          cross_entropy<int64_t>(type, rows, V, gradient);
          cross_entropy<int32_t>(type, rows, V, gradient);
        }
}

}  // namespace memory_check
