#include "../common/checks.h"
#include "swiglu.h"

namespace minigpt {
namespace {

constexpr const char* kOp = "swiglu";

struct Problem {
  int64_t rows, F;
  DType dtype;
  std::vector<int64_t> y_shape;  // (..., F)
};

Problem checked(const Tensor& x) {
  check(x.dim() >= 1, kOp, ": x must be (..., 2 F), got a tensor without dimensions");
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  check(shape.back() >= 2 && shape.back() % 2 == 0, kOp,
        ": x's last dimension must be even, gate and up side by side, and at least 2, got ", shape_of(x));
  shape.back() /= 2;
  const int64_t F = shape.back();
  return {x.numel() / (2 * F), F, dtype_of(x, kOp, "x"), shape};
}

}  // namespace

Tensor swiglu_forward(const Tensor& x) {
  const Problem p = checked(x);
  const Tensor x_dense = dense(x);
  Tensor y = empty(x, p.y_shape, x.scalar_type());
  RUN(swiglu_forward, x, (SwigluForwardParams{p.rows, p.F, p.dtype, input(x_dense), output(y)}));
  return y;
}

Tensor swiglu_backward(const Tensor& dy, const Tensor& x) {
  const Problem p = checked(x);
  check_same_device(dy, x, kOp, "dy");
  check_type(dy, x.scalar_type(), kOp, "dy");
  check_shape(dy, p.y_shape, kOp, "dy", "(..., F)");
  const Tensor x_dense = dense(x), dy_dense = dense(dy);
  Tensor dx = torch::stable::empty_like(x_dense);
  RUN(swiglu_backward, x, (SwigluBackwardParams{p.rows, p.F, p.dtype, input(dy_dense), input(x_dense), output(dx)}));
  return dx;
}

}  // namespace minigpt

REGISTER(swiglu_forward)
REGISTER(swiglu_backward)
