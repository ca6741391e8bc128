// The checks that layer_norm and rms_norm share, with and without a residual.
#pragma once
#include <string>

#include "checks.h"
#include "column_sums.h"

namespace minigpt {

// Rows, columns and types of x and weight.
struct NormProblem {
  int64_t rows, C;
  DType dtype, weight_dtype;
};

inline bool is_half(DType dtype) { return dtype == DType::bf16 || dtype == DType::f16; }

// name: what the caller calls x, or what has its shape and type.
inline NormProblem checked_norm(const Tensor& x, const Tensor& weight, const char* op, const char* name = "x") {
  check(x.dim() >= 1, op, ": ", name, " must be (..., C), got a tensor without dimensions");
  const int64_t C = x.size(x.dim() - 1);
  check(C >= 1, op, ": ", name, " must have at least one element in its last dimension, got ", shape_of(x));
  check_same_device(weight, x, op, "weight");
  check_shape(weight, {C}, op, "weight", "(C,)");
  const NormProblem p{x.numel() / C, C, dtype_of(x, op, name), dtype_of(weight, op, "weight")};
  check(p.dtype == p.weight_dtype || (is_half(p.dtype) && p.weight_dtype == DType::f32), op, ": weight must have ",
        name, "'s dtype, or be float32 where ", name, " is bfloat16 or float16; got ", name, " ",
        name_of(x.scalar_type()), ", weight ", name_of(weight.scalar_type()));
  return p;
}

// The dtype of a residual, or of its sum with x; p: of x, which the caller calls `name`.
inline DType checked_residual(const Tensor& t, const Tensor& x, const NormProblem& p, const char* op,
                              const char* argument, const char* name = "x") {
  check_same_device(t, x, op, argument);
  check_shape(t, {x.sizes().begin(), x.sizes().end()}, op, argument, (std::string(name) + "'s shape").c_str());
  const DType dtype = dtype_of(t, op, argument);
  check(dtype == p.dtype || (is_half(p.dtype) && dtype == DType::f32 && p.weight_dtype == DType::f32), op, ": ",
        argument, " must have ", name, "'s dtype, or be float32 where ", name,
        " is bfloat16 or float16 and weight is float32; got ", argument, " ", name_of(t.scalar_type()), ", ", name, " ",
        name_of(x.scalar_type()));
  return dtype;
}

// mean or rstd, as the forward returned it.
inline void check_statistics(const Tensor& t, const Tensor& x, const NormProblem& p, const char* op,
                             const char* argument) {
  check_same_device(t, x, op, argument);
  check_shape(t, {p.rows}, op, argument, "(rows,)");
  check_type(t, accumulate_type(p.dtype), op, argument);
  check(t.is_contiguous(), op, ": ", argument, " must be contiguous");
}

// The gradient of `of`, which the caller calls `name`.
inline void check_gradient(const Tensor& t, const Tensor& of, const char* op, const char* argument, const char* name) {
  check_same_device(t, of, op, argument);
  check_shape(t, {of.sizes().begin(), of.sizes().end()}, op, argument, (std::string(name) + "'s shape").c_str());
  check_type(t, of.scalar_type(), op, argument);
}

}  // namespace minigpt
