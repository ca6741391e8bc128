#include <cstdlib>

#include "../common/checks.h"
#include "rope.h"

namespace minigpt {
namespace {

constexpr const char* kOp = "rope";

// cos or sin.
void check_table(const Tensor& t, const Tensor& x, std::vector<int64_t> shape, const char* argument) {
  check_same_device(t, x, kOp, argument);
  check_type(t, accumulate_type(dtype_of(x, kOp, "x")), kOp, argument);
  check_shape(t, std::move(shape), kOp, argument, "(n_positions, R/2)");
}

// On a GPU that would wait for the device; there the kernel writes zeros for a position out of range, and only
// MINIGPT_CHECK=1 has them checked.
void check_positions(const Tensor& positions, int64_t T, int64_t n_positions) {
  const char* const wanted = std::getenv("MINIGPT_CHECK");
  if (runs_cuda(positions) && !(wanted && std::string(wanted) == "1")) return;
  const Tensor here = positions.is_cpu()
                          ? positions
                          : torch::stable::to(positions, torch::stable::Device(torch::headeronly::DeviceType::CPU));
  const int32_t* const position = static_cast<const int32_t*>(here.const_data_ptr());
  for (int64_t i = 0; i < here.numel(); ++i)
    check(position[i] >= 0 && position[i] < n_positions, kOp, ": positions[", i / T, "][", i % T, "] is ", position[i],
          ", cos and sin have ", n_positions, " positions (0 ... ", n_positions - 1, ")");
}

}  // namespace

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const std::optional<Tensor>& positions,
            bool inverse) {
  check(x.dim() == 4, kOp, ": x must be (B, T, H, D), got ", shape_of(x));
  const int64_t B = x.size(0), T = x.size(1), H = x.size(2), D = x.size(3);
  const DType dtype = dtype_of(x, kOp, "x");
  check(cos.dim() == 2, kOp, ": cos must be (n_positions, R/2), got ", shape_of(cos));
  const int64_t n_positions = cos.size(0), half = cos.size(1);
  check_table(cos, x, {n_positions, half}, "cos");
  check_table(sin, x, {n_positions, half}, "sin");
  check(half <= D / 2, kOp, ": cos and sin rotate R = ", 2 * half, " dimensions, x has D = ", D);
  check(H * D <= 0x3fffffff, kOp, ": x must have fewer than 2^30 values a token, got H * D = ", H * D);
  std::optional<Tensor> positions_dense;
  if (positions) {
    check_same_device(*positions, x, kOp, "positions");
    check_type(*positions, ScalarType::Int, kOp, "positions");
    check_shape(*positions, {B, T}, kOp, "positions", "(B, T)");
    positions_dense = dense(*positions);
    check_positions(*positions_dense, T, n_positions);
  } else {
    check(T <= n_positions, kOp, ": x has T = ", T, " tokens, cos and sin only ", n_positions, " positions");
  }

  const Tensor x_in = D > 1 && x.stride(3) != 1 ? dense(x) : x, cos_dense = dense(cos), sin_dense = dense(sin);
  Tensor y = empty(x, {B, T, H, D}, x.scalar_type());
  const RopeParams params{
      .B = B,
      .T = T,
      .H = H,
      .D = D,
      .half = half,
      .n_positions = n_positions,
      .dtype = dtype,
      .inverse = inverse,
      .x = input(x_in),
      .batch_stride = x_in.stride(0),
      .token_stride = x_in.stride(1),
      .head_stride = x_in.stride(2),
      .cos = input(cos_dense),
      .sin = input(sin_dense),
      .positions = static_cast<const int32_t*>(input(positions_dense)),
      .y = output(y),
  };
  RUN(rope, x, params);
  return y;
}

}  // namespace minigpt

REGISTER(rope)
