#include <tuple>

#include "../common/checks.h"
#include "../common/column_sums.h"
#include "gelu.h"

namespace minigpt {
namespace {

constexpr const char* kFusedOp = "bias_gelu";

// Rows, columns and types of x and bias.
struct BiasProblem {
  int64_t rows, C;
  DType dtype, bias_dtype;
};

BiasProblem checked_bias(const Tensor& x, const Tensor& bias) {
  check(x.dim() >= 1, kFusedOp, ": x must be (..., C), got a tensor without dimensions");
  const int64_t C = x.size(x.dim() - 1);
  check(C >= 1, kFusedOp, ": x must have at least one element in its last dimension, got ", shape_of(x));
  check_same_device(bias, x, kFusedOp, "bias");
  check_shape(bias, {C}, kFusedOp, "bias", "(C,)");
  const BiasProblem p{x.numel() / C, C, dtype_of(x, kFusedOp, "x"), dtype_of(bias, kFusedOp, "bias")};
  const bool half = p.dtype == DType::bf16 || p.dtype == DType::f16;
  check(p.dtype == p.bias_dtype || (half && p.bias_dtype == DType::f32), kFusedOp,
        ": bias must have x's dtype, or be float32 where x is bfloat16 or float16; got x ", name_of(x.scalar_type()),
        ", bias ", name_of(bias.scalar_type()));
  return p;
}

}  // namespace

Tensor gelu_forward(const Tensor& x, bool tanh) {
  const DType dtype = dtype_of(x, "gelu", "x");
  const Tensor x_dense = dense(x);
  Tensor y = torch::stable::empty_like(x_dense);
  RUN(gelu_forward, x, (GeluForwardParams{x.numel(), dtype, tanh, input(x_dense), output(y)}));
  return y;
}

Tensor gelu_backward(const Tensor& dy, const Tensor& x, bool tanh) {
  const DType dtype = dtype_of(x, "gelu", "x");
  check_same_device(x, dy, "gelu backward", "x");
  check_type(dy, x.scalar_type(), "gelu backward", "dy");
  check_shape(dy, {x.sizes().begin(), x.sizes().end()}, "gelu backward", "dy", "x's shape");
  const Tensor x_dense = dense(x), dy_dense = dense(dy);
  Tensor dx = torch::stable::empty_like(x_dense);
  RUN(gelu_backward, x, (GeluBackwardParams{x.numel(), dtype, tanh, input(dy_dense), input(x_dense), output(dx)}));
  return dx;
}

Tensor bias_gelu_forward(const Tensor& x, const Tensor& bias, bool tanh) {
  const BiasProblem p = checked_bias(x, bias);
  const Tensor x_dense = dense(x), bias_dense = dense(bias);
  Tensor y = torch::stable::empty_like(x_dense);
  const BiasGeluForwardParams params{
      .rows = p.rows,
      .C = p.C,
      .dtype = p.dtype,
      .bias_dtype = p.bias_dtype,
      .tanh = tanh,
      .x = input(x_dense),
      .bias = input(bias_dense),
      .y = output(y),
  };
  RUN(bias_gelu_forward, x, params);
  return y;
}

std::tuple<Tensor, Tensor> bias_gelu_backward(const Tensor& dy, const Tensor& x, const Tensor& bias, bool tanh) {
  const BiasProblem p = checked_bias(x, bias);
  check_same_device(dy, x, kFusedOp, "dy");
  check_type(dy, x.scalar_type(), kFusedOp, "dy");
  check_shape(dy, {x.sizes().begin(), x.sizes().end()}, kFusedOp, "dy", "x's shape");
  const Tensor x_dense = dense(x), dy_dense = dense(dy), bias_dense = dense(bias);
  const int64_t chunks = column_sum_chunks(p.rows, runs_cuda(x));
  Tensor partial = empty(x, {chunks, p.C}, accumulate_type(p.dtype));
  Tensor dx = torch::stable::empty_like(x_dense), dbias = torch::stable::empty_like(bias_dense);
  const BiasGeluBackwardParams params{
      .rows = p.rows,
      .C = p.C,
      .dtype = p.dtype,
      .bias_dtype = p.bias_dtype,
      .tanh = tanh,
      .dy = input(dy_dense),
      .x = input(x_dense),
      .bias = input(bias_dense),
      .dx = output(dx),
      .dbias = output(dbias),
      .partial = output(partial),
      .chunks = chunks,
  };
  RUN(bias_gelu_backward, x, params);
  return {dx, dbias};
}

}  // namespace minigpt

REGISTER(gelu_forward)
REGISTER(gelu_backward)
REGISTER(bias_gelu_forward)
REGISTER(bias_gelu_backward)
