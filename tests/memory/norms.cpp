#include "common/column_sums.h"
#include "layer_norm/layer_norm.h"
#include "memory_check.h"
#include "rms_norm/rms_norm.h"

namespace memory_check {
namespace {

constexpr int64_t kRows[] = {0, 1, 17, 35}, kColumns[] = {1, 2, 15, 33, 64, 257};

// Every shape and set of types; the residual's: none, x's, and f32 beside 16 bits under f32 weights.
template <class F>
void each_case(const char* name, const F& check) {
  for (const auto [x, weight] : kPairs)
    for (int residual = 0; residual < (x == weight ? 2 : 3); ++residual)
      for (int64_t rows : kRows)
        for (int64_t C : kColumns) {
          const DType residual_type = residual == 2 ? DType::f32 : x;
          say(name, name_of(x), name_of(weight), residual ? name_of(residual_type) : "-", "rows", rows, "C", C);
          check(x, weight, residual_type, residual > 0, rows, C);
        }
}

void* if_wanted(bool wanted, const Block& block) { return wanted ? static_cast<void*>(block) : nullptr; }

void layer_norm(DType type, DType weight_type, DType s_type, bool residual, int64_t rows, int64_t C, bool bias) {
  const DType wide = accumulation(type);
  const int64_t n = rows * C, chunks = column_sum_chunks(rows, false);
  const Block x = Block::filled(type, n, 1), r = Block::filled(s_type, n, 2), w = Block::filled(weight_type, C, 3),
              b = Block::filled(weight_type, C, 4), dy = Block::filled(type, n, 5), ds = Block::filled(s_type, n, 6);
  const Block s(s_type, n), y(type, n), mean(wide, rows), rstd(wide, rows), dx(type, n), dresidual(s_type, n),
      dweight(weight_type, C), dbias(weight_type, C), partial(wide, 2 * chunks * C);
  LayerNormForwardParams forward{.rows = rows,
                                 .C = C,
                                 .dtype = type,
                                 .weight_dtype = weight_type,
                                 .residual_dtype = s_type,
                                 .x = x,
                                 .residual = if_wanted(residual, r),
                                 .weight = w,
                                 .bias = if_wanted(bias, b),
                                 .eps = 1e-5,
                                 .s = if_wanted(residual, s),
                                 .y = y,
                                 .mean = nullptr,
                                 .rstd = nullptr};
  layer_norm_forward_cpu(forward);
  y.check("y without statistics");
  forward.mean = mean, forward.rstd = rstd;
  layer_norm_forward_cpu(forward);
  if (residual) s.check("s");
  mean.check("mean");
  rstd.check("rstd");
  const bool two = s_type != type;
  layer_norm_backward_cpu({.rows = rows,
                           .C = C,
                           .dtype = type,
                           .weight_dtype = weight_type,
                           .residual_dtype = s_type,
                           .dy = dy,
                           .s = residual ? s : x,
                           .ds = if_wanted(residual && bias, ds),
                           .weight = w,
                           .mean = mean,
                           .rstd = rstd,
                           .dx = dx,
                           .dresidual = if_wanted(two, dresidual),
                           .dweight = dweight,
                           .dbias = if_wanted(bias, dbias),
                           .partial = partial,
                           .chunks = chunks});
  dx.check("dx");
  if (two) dresidual.check("dresidual");
  dweight.check("dweight");
  if (bias) dbias.check("dbias");
}

// gap: elements between two rows of x, where there is no residual.
void rms_norm(DType type, DType weight_type, DType s_type, bool residual, int64_t rows, int64_t C, int64_t gap) {
  const DType wide = accumulation(type);
  const int64_t n = rows * C, chunks = column_sum_chunks(rows, false), inner = residual ? 1 : 5;
  if (residual) gap = 0;
  const RowLayout layout{inner, C + gap, inner * (C + gap)};
  const Block x = Block::filled(type, rows ? n + (rows - 1) * gap : 0, 1), r = Block::filled(s_type, n, 2),
              w = Block::filled(weight_type, C, 3), dy = Block::filled(type, n, 4), ds = Block::filled(s_type, n, 5);
  const Block s(s_type, n), y(type, n), rstd(wide, rows), dx(type, n), dresidual(s_type, n), dweight(weight_type, C),
      partial(wide, chunks * C);
  RmsNormForwardParams forward{.rows = rows,
                               .C = C,
                               .dtype = type,
                               .weight_dtype = weight_type,
                               .residual_dtype = s_type,
                               .x = x,
                               .layout = layout,
                               .residual = if_wanted(residual, r),
                               .weight = w,
                               .eps = 1e-5,
                               .s = if_wanted(residual, s),
                               .y = y,
                               .rstd = nullptr};
  rms_norm_forward_cpu(forward);
  y.check("y without statistics");
  forward.rstd = rstd;
  rms_norm_forward_cpu(forward);
  if (residual) s.check("s");
  rstd.check("rstd");
  const bool two = s_type != type;
  rms_norm_backward_cpu({.rows = rows,
                         .C = C,
                         .dtype = type,
                         .weight_dtype = weight_type,
                         .residual_dtype = s_type,
                         .dy = dy,
                         .s = residual ? s : x,
                         .layout = layout,
                         .ds = if_wanted(residual, ds),
                         .weight = w,
                         .rstd = rstd,
                         .dx = dx,
                         .dresidual = if_wanted(two, dresidual),
                         .dweight = dweight,
                         .partial = partial,
                         .chunks = chunks});
  dx.check("dx");
  if (two) dresidual.check("dresidual");
  dweight.check("dweight");
}

}  // namespace

void check_layer_norm() {
  each_case("layer_norm", [](auto... c) { layer_norm(c..., /*bias=*/false), layer_norm(c..., /*bias=*/true); });
}

void check_rms_norm() {
  each_case("rms_norm", [](auto... c) { rms_norm(c..., /*gap=*/0), rms_norm(c..., /*gap=*/3); });
}

}  // namespace memory_check
