#include "attention/attention.h"

#include "memory_check.h"

namespace memory_check {
namespace {

struct Case {
  int64_t B, T, S, H, H_kv, D;
  bool causal = true;
  int64_t window = 0;
  bool dropout = false;
  double softcap = 0;
  bool alibi = false;
  int64_t gap = 0;  // elements between two tokens
};

const Case kCases[] = {
    {1, 1, 1, 1, 1, 1},
    {1, 1, 1, 1, 1, 256},
    {2, 3, 5, 4, 2, 3},
    {1, 1, 70, 3, 1, 33},
    {1, 5, 3, 1, 1, 17},  // the first queries see nothing
    {1, 33, 33, 2, 1, 31, false},
    {1, 65, 65, 1, 1, 65},  // one past a tile of keys; runs of keys in the backward
    {1, 129, 130, 1, 1, 16, true, 7},
    {1, 515, 570, 2, 1, 3},  // runs of keys and of queries
    {1, 790, 520, 1, 1, 2, true, 100},
    {17, 33, 65, 1, 1, 8},  // one run of keys
    {17, 70, 70, 1, 1, 8, true, 2},
    {1, 31, 97, 2, 2, 64, true, 0, true},
    {2, 40, 66, 6, 2, 5, true, 9, true, 0, true, 3},
    {1, 33, 34, 2, 2, 127, true, 0, false, 20},
    {1, 67, 70, 2, 1, 24, true, 0, true, 5, true, 1},
    {1, 9, 65, 1, 1, 255, false, 0, true, 2, false},
    {0, 3, 3, 1, 1, 4},
    {1, 0, 3, 1, 1, 4},
    {1, 3, 0, 1, 1, 4, false},
};

// From the first element of the first token to the last one of the last.
int64_t extent(int64_t tokens, int64_t width, int64_t gap) { return tokens ? tokens * (width + gap) - gap : 0; }

void check(const Case& c, DType type) {
  say("attention", name_of(type), "B", c.B, "T", c.T, "S", c.S, "H", c.H, "H_kv", c.H_kv, "D", c.D, "causal", c.causal,
      "window", c.window, "dropout", c.dropout, "softcap", c.softcap, "alibi", c.alibi, "gap", c.gap);
  const DType wide = accumulation(type);
  const int64_t q_width = c.H * c.D, k_width = c.H_kv * c.D, rows = c.B * c.T * q_width, keys = c.B * c.S * k_width;
  const Block q = Block::filled(type, extent(c.B * c.T, q_width, c.gap), 1),
              k = Block::filled(type, extent(c.B * c.S, k_width, c.gap), 2),
              v = Block::filled(type, extent(c.B * c.S, k_width, c.gap), 3),
              dout = Block::filled(type, extent(c.B * c.T, q_width, c.gap), 4), slopes = Block::filled(wide, c.H, 5);
  const Strides q_strides{c.T * (q_width + c.gap), q_width + c.gap, c.D},
      k_strides{c.S * (k_width + c.gap), k_width + c.gap, c.D};
  const auto seed = copy_of<int64_t>({-7});
  const AttentionShape shape{.B = c.B,
                             .T = c.T,
                             .S = c.S,
                             .H = c.H,
                             .H_kv = c.H_kv,
                             .D = c.D,
                             .scale = 0.3,
                             .causal = c.causal,
                             .window = c.window,
                             .dropout_threshold = c.dropout ? 1u << 30 : 0,
                             .dropout_scale = c.dropout ? 4.0 / 3 : 1};
  const ScoreRule rule{c.softcap, c.alibi ? static_cast<void*>(slopes) : nullptr};
  const int64_t* const seed_or_null = c.dropout ? seed.get() : nullptr;
  const Block out(type, rows), lse(wide, c.B * c.H * c.T);
  attention_forward_cpu({.shape = shape,
                         .dtype = type,
                         .rule = rule,
                         .q = q,
                         .k = k,
                         .v = v,
                         .q_strides = q_strides,
                         .k_strides = k_strides,
                         .v_strides = k_strides,
                         .seed = seed_or_null,
                         .out = out,
                         .lse = lse});
  out.check("out");
  lse.check("lse");
  const AttentionCut cut = attention_backward_cut(shape);
  const Block dq(type, rows), dk(type, keys), dv(type, keys), dq_shares(wide, cut.keys > 1 ? cut.keys * rows : 0),
      dk_shares(wide, cut.queries > 1 ? cut.queries * keys : 0),
      dv_shares(wide, cut.queries > 1 ? cut.queries * keys : 0);
  attention_backward_cpu({.shape = shape,
                          .dtype = type,
                          .rule = rule,
                          .dout = dout,
                          .q = q,
                          .k = k,
                          .v = v,
                          .out = out,
                          .dout_strides = q_strides,
                          .q_strides = q_strides,
                          .k_strides = k_strides,
                          .v_strides = k_strides,
                          .lse = lse,
                          .seed = seed_or_null,
                          .dq = dq,
                          .dk = dk,
                          .dv = dv,
                          .delta = nullptr,
                          .dq_shares = dq_shares,
                          .dk_shares = dk_shares,
                          .dv_shares = dv_shares,
                          .cut = cut});
  dq.check("dq");
  dk.check("dk");
  dv.check("dv");
}

}  // namespace

void check_attention() {
  for (DType type : kTypes)
    for (const Case& c : kCases) check(c, type);
}

}  // namespace memory_check
