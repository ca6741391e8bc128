// The checks of a ScoreRule's arguments, for every attention op.
#pragma once
#include "checks.h"

namespace minigpt {

// The limits leave room for softcap, its reciprocal and a score divided by it among the numbers of a float.
inline void check_score_rule(const std::optional<Tensor>& alibi_slopes, double softcap, const Tensor& q, int64_t H,
                             bool causal, const char* op) {
  check(softcap == 0 || (softcap >= 1e-30 && softcap <= 1e30), op,
        ": softcap must be 1e-30 ... 1e30, or 0 for none, got ", softcap);
  if (!alibi_slopes) return;
  check(causal, op, ": alibi_slopes needs causal");
  check_same_device(*alibi_slopes, q, op, "alibi_slopes");
  check_type(*alibi_slopes, accumulate_type(dtype_of(q, op, "q")), op, "alibi_slopes");
  check_shape(*alibi_slopes, {H}, op, "alibi_slopes", "(H,)");
  check_last_stride(*alibi_slopes, op, "alibi_slopes");
}

}  // namespace minigpt
