#include <algorithm>
#include <tuple>

#include "../common/checks.h"
#include "cross_entropy.h"

namespace minigpt {
namespace {

constexpr const char* kOp = "cross_entropy";

// Every target must be an id or ignore_index. `targets` is in the CPU's memory, contiguous.
template <class Id>
void check_values(const Tensor& targets, int64_t V, int64_t ignore_index) {
  const Id* const values = static_cast<const Id*>(targets.const_data_ptr());
  const Id* const end = values + targets.numel();
  const Id* const wrong = std::find_if(values, end, [=](Id id) { return (id < 0 || id >= V) && id != ignore_index; });
  if (wrong != end)
    check(false, kOp, ": targets must be in [0, ", V, ") or ignore_index = ", ignore_index, ", got ", *wrong,
          " as element ", wrong - values);
}

}  // namespace

std::tuple<Tensor, Tensor> cross_entropy_forward(const Tensor& logits, const Tensor& targets, int64_t ignore_index,
                                                 bool gradient) {
  const DType dtype = dtype_of(logits, kOp, "logits");
  check(logits.dim() >= 1 && logits.size(logits.dim() - 1) >= 1, kOp,
        ": logits must be (..., V) with V of at least 1, got ", shape_of(logits));
  check_same_device(targets, logits, kOp, "targets");
  const bool targets_64 = targets.scalar_type() == ScalarType::Long;
  check(targets_64 || targets.scalar_type() == ScalarType::Int, kOp, ": targets must be int64 or int32, got ",
        name_of(targets.scalar_type()));
  std::vector<int64_t> shape(logits.sizes().begin(), logits.sizes().end());
  const int64_t V = shape.back(), rows = logits.numel() / V;
  shape.pop_back();
  check_shape(targets, shape, kOp, "targets", "(...)");
  const Tensor logits_dense = dense(logits), targets_dense = dense(targets);
  if (values_are_checked(targets)) {
    const Tensor values = on_cpu(targets_dense);
    targets_64 ? check_values<int64_t>(values, V, ignore_index) : check_values<int32_t>(values, V, ignore_index);
  }

  const ScalarType accumulation = accumulate_type(dtype);
  Tensor loss = empty(logits, {}, accumulation), row_loss = empty(logits, {rows}, accumulation);
  Tensor share = empty(logits, {1}, accumulation);
  Tensor dlogits = gradient ? torch::stable::empty_like(logits_dense) : empty(logits, {0}, logits.scalar_type());
  const CrossEntropyForwardParams params{
      .rows = rows,
      .V = V,
      .dtype = dtype,
      .logits = input(logits_dense),
      .targets = input(targets_dense),
      .targets_64 = targets_64,
      .ignore_index = ignore_index,
      .loss = output(loss),
      .row_loss = output(row_loss),
      .share = output(share),
      .dlogits = gradient ? output(dlogits) : nullptr,
  };
  RUN(cross_entropy_forward, logits, params);
  return {loss, dlogits};
}

Tensor cross_entropy_backward(const Tensor& dloss, const Tensor& dlogits) {
  const DType dtype = dtype_of(dlogits, kOp, "dlogits");
  check_same_device(dloss, dlogits, kOp, "dloss");
  check_type(dloss, accumulate_type(dtype), kOp, "dloss");
  check_shape(dloss, {}, kOp, "dloss", "one number");
  const Tensor dlogits_dense = dense(dlogits);
  Tensor scaled = torch::stable::empty_like(dlogits_dense);
  RUN(cross_entropy_backward, dlogits,
      (CrossEntropyBackwardParams{dlogits.numel(), dtype, input(dlogits_dense), input(dloss), output(scaled)}));
  return scaled;
}

}  // namespace minigpt

REGISTER(cross_entropy_forward)
REGISTER(cross_entropy_backward)
