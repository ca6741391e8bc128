#include "../common/checks.h"
#include "relu_squared.h"

namespace minigpt {

Tensor relu_squared_forward(const Tensor& x) {
  const DType dtype = dtype_of(x, "relu_squared", "x");
  const Tensor x_dense = dense(x);
  Tensor y = torch::stable::empty_like(x_dense);
  RUN(relu_squared_forward, x, (ReluSquaredForwardParams{x.numel(), dtype, input(x_dense), output(y)}));
  return y;
}

Tensor relu_squared_backward(const Tensor& dy, const Tensor& x) {
  constexpr const char* op = "relu_squared backward";
  const DType dtype = dtype_of(x, op, "x");
  check_same_device(x, dy, op, "x");
  check_type(dy, x.scalar_type(), op, "dy");
  check_shape(dy, {x.sizes().begin(), x.sizes().end()}, op, "dy", "x's shape");
  const Tensor x_dense = dense(x), dy_dense = dense(dy);
  Tensor dx = torch::stable::empty_like(x_dense);
  RUN(relu_squared_backward, x,
      (ReluSquaredBackwardParams{x.numel(), dtype, input(dy_dense), input(x_dense), output(dx)}));
  return dx;
}

}  // namespace minigpt

REGISTER(relu_squared_forward)
REGISTER(relu_squared_backward)
