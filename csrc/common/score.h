// What may be done to attention's scores s = scale <q, k> before the mask and the softmax, in this order:
//   softcap  s -> softcap tanh(s / softcap)     Gemma 2, 2024 (arXiv:2408.00118)
//   ALiBi    s -> s - slope_h (i - j)           i, j: the positions of query and key; Press et al., 2022 (arXiv:2108.12409)
#pragma once
#include <type_traits>

namespace minigpt {

struct ScoreRule {
  double softcap;            // 0: none
  const void* alibi_slopes;  // (H,), float (double for f64), on the tensors' device; null: none

  bool is_plain() const { return softcap == 0 && !alibi_slopes; }
};

// Calls f with whether there is a rule, known to the compiler.
template <class F>
void dispatch_rule(const ScoreRule& rule, const F& f) {
  if (rule.is_plain()) return f(std::false_type{});
  f(std::true_type{});
}

}  // namespace minigpt
