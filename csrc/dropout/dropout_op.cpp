#include <algorithm>

#include "../common/checks.h"
#include "dropout.h"

namespace minigpt {
namespace {

constexpr const char* kOp = "dropout";

}  // namespace

Tensor dropout(const Tensor& x, const std::optional<Tensor>& residual, double dropout_p, const Tensor& seed,
               ScalarType out_type) {
  const DType dtype = dtype_of(x, kOp, "x");
  check(dropout_p >= 0 && dropout_p < 1, kOp, ": p must be in [0, 1), got ", dropout_p);
  check_same_device(seed, x, kOp, "seed");
  check_type(seed, ScalarType::Long, kOp, "seed");
  check(seed.numel() == 1, kOp, ": seed must have one element, got ", shape_of(seed));
  if (residual) {
    check_same_device(*residual, x, kOp, "residual");
    check_shape(*residual, {x.sizes().begin(), x.sizes().end()}, kOp, "residual", "x's shape");
    check_type(*residual, out_type, kOp, "residual");
  }
  Tensor out = empty(x, {x.sizes().begin(), x.sizes().end()}, out_type);
  const DType out_dtype = dtype_of(out, kOp, "dtype");
  const auto half = [](DType type) { return type == DType::bf16 || type == DType::f16; };
  check(dtype == out_dtype || (half(dtype) && out_dtype == DType::f32) ||
            (half(out_dtype) && dtype == DType::f32 && !residual),
        kOp, ": residual must have x's dtype, or be float32 where x is bfloat16 or float16; got x ",
        name_of(x.scalar_type()), ", residual ", name_of(out_type));
  const Tensor x_dense = dense(x);
  const std::optional<Tensor> residual_dense = residual ? std::optional(dense(*residual)) : std::nullopt;
  const DropoutParams params{
      .n = x.numel(),
      .dtype = dtype,
      .out_dtype = out_dtype,
      .threshold = uint32_t(std::min(dropout_p * 4294967296.0, 4294967295.0)),
      .scale = 1.0 / (1.0 - dropout_p),
      .seed = static_cast<const int64_t*>(input(seed)),
      .x = input(x_dense),
      .residual = input(residual_dense),
      .out = output(out),
  };
  RUN(dropout, x, params);
  return out;
}

}  // namespace minigpt

REGISTER(dropout)
