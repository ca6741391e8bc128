// The checks that layer_norm and rms_norm share.
#pragma once
#include "checks.h"
#include "column_sums.h"

namespace minigpt {

// Rows, columns and types of x and weight.
struct NormProblem {
  int64_t rows, C;
  DType dtype, weight_dtype;
};

inline NormProblem checked_norm(const Tensor& x, const Tensor& weight, const char* op) {
  check(x.dim() >= 1, op, ": x must be (..., C), got a tensor without dimensions");
  const int64_t C = x.size(x.dim() - 1);
  check(C >= 1, op, ": x must have at least one element in its last dimension, got ", shape_of(x));
  check_same_device(weight, x, op, "weight");
  check_shape(weight, {C}, op, "weight", "(C,)");
  const NormProblem p{x.numel() / C, C, dtype_of(x, op, "x"), dtype_of(weight, op, "weight")};
  const bool half = p.dtype == DType::bf16 || p.dtype == DType::f16;
  check(p.dtype == p.weight_dtype || (half && p.weight_dtype == DType::f32), op,
        ": weight must have x's dtype, or be float32 where x is bfloat16 or float16; got x ", name_of(x.scalar_type()),
        ", weight ", name_of(weight.scalar_type()));
  return p;
}

// mean or rstd, as the forward returned it.
inline void check_statistics(const Tensor& t, const Tensor& x, const NormProblem& p, const char* op,
                             const char* argument) {
  check_same_device(t, x, op, argument);
  check_shape(t, {p.rows}, op, argument, "(rows,)");
  check_type(t, accumulate_type(p.dtype), op, argument);
  check(t.is_contiguous(), op, ": ", argument, " must be contiguous");
}

inline void check_upstream(const Tensor& dy, const Tensor& x, const char* op) {
  check_same_device(dy, x, op, "dy");
  check_shape(dy, {x.sizes().begin(), x.sizes().end()}, op, "dy", "x's shape");
  check_type(dy, x.scalar_type(), op, "dy");
}

}  // namespace minigpt
