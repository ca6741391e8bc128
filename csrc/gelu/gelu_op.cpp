#include "../common/checks.h"
#include "gelu.h"

namespace minigpt {

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

}  // namespace minigpt

REGISTER(gelu_forward)
REGISTER(gelu_backward)
