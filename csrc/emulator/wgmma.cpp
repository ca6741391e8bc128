// wgmma. Its four warps issue it one by one; it is done when all have, as late as may be (with an odd seed: at once). Its
// accumulators hold poison until they are waited for.
#include <algorithm>

#include "bits.h"
#include "hopper_block.h"
#include "wgmma_matrix.h"

namespace minigpt::emulator {
namespace {

float value(MmaType type, uint16_t bits) {
  return type == MmaType::bf16 ? float_of_bfloat16(bits) : float_of_half(bits);
}

using Rows = std::vector<std::array<float, 16>>;  // [mn][k]

Rows load(const HopperBlock& units, const WgmmaMatrix& matrix, MmaType type, int rows) {
  Rows out(static_cast<size_t>(rows));
  matrix.for_each_piece(0, rows, [&](int mn, int k, uint32_t offset) {
    uint16_t bits[8];
    std::memcpy(bits, &units.seen[offset], sizeof bits);
    for (int i = 0; i < 8; ++i)
      (matrix.major == Major::k ? out[size_t(mn)][size_t(k + i)] : out[size_t(mn + i)][size_t(k)]) =
          value(type, bits[i]);
  });
  return out;
}

void observe(const HopperBlock& units, const WgmmaMatrix& matrix, int first, int rows, const Wgmma& w) {
  matrix.for_each_piece(first, rows, [&](int, int, uint32_t offset) {
    if (offset + 16 > SharedMemory::kCapacity) fail("wgmma: a descriptor leads out of shared memory", w.where);
    observer::accessed({units.block.shared.memory + offset, 16, false, false, false, w.code, true});
  });
}

// ---- what a wgmma does --------------------------------------------------------------------------------------------

void compute(HopperBlock& units, Warpgroup& group, Wgmma& w) {
  const WgmmaMatrix b(w.b, w.shape.b, "B", w.where);
  observe(units, b, 0, w.shape.n, w);
  const Rows columns = load(units, b, w.shape.type, w.shape.n);
  Rows rows(64);
  if (w.a_in_registers) {
    for (size_t t = 0; t < 128; ++t)
      for (size_t i = 0; i < 4; ++i)
        for (size_t half = 0; half < 2; ++half)
          rows[t / 32 * 16 + t % 32 / 4 + i % 2 * 8][t % 4 * 2 + i / 2 * 8 + half] =
              value(w.shape.type, uint16_t(w.parts[t].a[i] >> 16 * half));
  } else {
    const WgmmaMatrix a(w.a, w.shape.a, "A", w.where);
    observe(units, a, 0, 64, w);
    rows = load(units, a, w.shape.type, 64);
  }
  for (size_t t = 0; t < 128; ++t) {
    std::vector<float>& d = w.parts[t].d->values;
    for (size_t i = 0; i < d.size(); ++i) {
      const auto& row = rows[t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8];
      const auto& column = columns[i / 4 * 8 + t % 4 * 2 + i % 2];
      float sum = w.accumulate ? d[i] : 0.0f;
      for (size_t k = 0; k < 16; ++k) sum += row[k] * column[k];
      d[i] = sum;
    }
  }
  observer::multiplied(2 * 64 * 16 * w.shape.n);
  observer::release(group.reads);
}

void compute_up_to(HopperBlock& units, Warpgroup& group, size_t behind) {
  for (; group.computed < behind; ++group.computed) compute(units, group, group.wgmmas[group.computed - group.first]);
}

Warpgroup& warpgroup_of(HopperBlock& units, const Thread& thread) { return units.warpgroups[size_t(thread.warp) / 4]; }

WgmmaWarp& warp_of(HopperBlock& units, const Thread& thread) {
  return warpgroup_of(units, thread).warps[size_t(thread.warp) % 4];
}

void check_whole_warpgroup(const char* what, Where where) {
  const unsigned threads = block_dim.x * block_dim.y * block_dim.z;
  if (unsigned(self->warp) / 4 * 128 + 128 > threads)
    fail(std::string(what) + ": warp " + std::to_string(self->warp) + " is in no whole warpgroup of 128 threads",
         where);
}

// Whether registers hold what they did at the thread's last fence.
bool fenced(const HopperBlock& units, const Thread& thread, const void* registers, size_t bytes) {
  const FencedRegisters& then = units.fenced[size_t(thread.number)];
  const ptrdiff_t at = static_cast<const char*>(registers) - then.from;
  return at >= 0 && size_t(at) + bytes <= then.bytes.size() && !std::memcmp(&then.bytes[size_t(at)], registers, bytes);
}

bool is_poison(const float* p, size_t count) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(p);
  return std::all_of(bytes, bytes + count * sizeof(float), [](unsigned char b) { return b == 0xff; });
}

// ---- issue --------------------------------------------------------------------------------------------------------

struct WgmmaFrame {
  WgmmaShape shape;
  float* d;
  const uint32_t* a_registers;
  uint64_t a, b;
  bool accumulate;
  Where where;
  const void* code;
};

std::shared_ptr<Accumulators> accumulators_of(HopperBlock& units, const Thread& thread, const WgmmaFrame& frame) {
  const size_t count = size_t(frame.shape.n) / 2;
  auto& on_their_way = warp_of(units, thread).on_their_way[size_t(thread.lane)];
  for (const auto& [registers, other] : on_their_way) {
    if (registers + other->values.size() <= frame.d || frame.d + count <= registers) continue;
    if (registers != frame.d || other->values.size() != count)
      fail("wgmma: its accumulators overlap others that an earlier wgmma, not yet waited for, will change",
           frame.where);
    if (!is_poison(frame.d, count))
      fail("wgmma: its accumulators were written to while an earlier wgmma was to change them; wgmma_wait first",
           frame.where);
    return other;
  }
  if (!thread.fiber.owns(frame.d)) fail("wgmma: accumulators must be the thread's own variables", frame.where);
  if (!fenced(units, thread, frame.d, count * sizeof(float)))
    fail("wgmma: no wgmma_fence since its accumulators were last written to, in lane " + std::to_string(thread.lane),
         frame.where);
  auto& made = on_their_way[frame.d];
  made = std::make_shared<Accumulators>(Accumulators{frame.d, {frame.d, frame.d + count}, 0});
  poison(frame.d, count * sizeof(float));
  return made;
}

void issue(void* const* frames, unsigned) {
  HopperBlock& units = hopper();
  Warpgroup& group = warpgroup_of(units, *self);
  WgmmaWarp& warp = warp_of(units, *self);
  const auto& first = *static_cast<const WgmmaFrame*>(frames[0]);

  const size_t number = warp.issued++;
  if (number - group.first == group.wgmmas.size())
    group.wgmmas.push_back({first.shape,
                            first.a,
                            first.b,
                            first.a_registers != nullptr,
                            first.accumulate,
                            false,
                            0,
                            0,
                            first.where,
                            first.code,
                            {}});
  Wgmma& w = group.wgmmas[number - group.first];
  if (!(w.shape == first.shape) || w.a != first.a || w.b != first.b || w.accumulate != first.accumulate ||
      w.a_in_registers != (first.a_registers != nullptr))
    fail(
        "wgmma: the warps of a warpgroup issue different ones; another warp's, with another shape or descriptor, is "
        "at " +
            text_of(w.where),
        first.where);
  const auto& threads = units.block.threads;
  const size_t warp_start = size_t(self->warp) * 32;
  for (size_t lane = 0; lane < 32; ++lane) {
    const auto& frame = *static_cast<const WgmmaFrame*>(frames[lane]);
    if (frame.a != first.a || frame.b != first.b || frame.accumulate != first.accumulate)
      fail("wgmma: lane " + std::to_string(lane) + " has other descriptors than lane 0", first.where);
    const Thread& thread = *threads[warp_start + lane];
    WgmmaPart& part = w.parts[(warp_start + lane) % 128];
    if (frame.a_registers) {
      if (!fenced(units, thread, frame.a_registers, 16))
        fail("wgmma: no wgmma_fence since A's registers were last written to, in lane " + std::to_string(lane),
             first.where);
      std::copy_n(frame.a_registers, 4, part.a.begin());
      part.a_registers = frame.a_registers;
    }
    part.d = accumulators_of(units, thread, frame);
    ++part.d->on_their_way;
  }
  // From now on it may read.
  observe(units, WgmmaMatrix(w.b, w.shape.b, "B", w.where), 0, w.shape.n, w);
  if (!w.a_in_registers) observe(units, WgmmaMatrix(w.a, w.shape.a, "A", w.where), self->warp % 4 * 16, 16, w);
  observer::release(group.reads);
  if (++w.warps_that_issued == 4 && settings.seed % 2) compute_up_to(units, group, number + 1);
}

// ---- what has been waited for -------------------------------------------------------------------------------------

void hand_out(HopperBlock& units, Warpgroup& group, WgmmaWarp& warp, const Thread& thread, size_t behind) {
  const size_t warp_start = size_t(thread.warp) * 32;
  for (; warp.waited < behind; ++warp.waited) {
    Wgmma& w = group.wgmmas[warp.waited - group.first];
    for (size_t lane = 0; lane < 32; ++lane) {
      WgmmaPart& part = w.parts[(warp_start + lane) % 128];
      if (w.a_in_registers && !std::equal(part.a.begin(), part.a.end(), part.a_registers))
        fail("wgmma: A's registers changed before it was waited for, in lane " + std::to_string(lane), w.where);
      const std::shared_ptr<Accumulators> d = std::move(part.d);
      if (--d->on_their_way > 0) continue;
      const size_t bytes = d->values.size() * sizeof(float);
      if (!is_poison(d->registers, d->values.size()))
        fail("wgmma: its accumulators were written to before it was waited for, in lane " + std::to_string(lane),
             w.where);
      std::memcpy(d->registers, d->values.data(), bytes);
      FencedRegisters& then = units.fenced[warp_start + lane];  // what wgmma itself writes needs no fence
      if (reinterpret_cast<char*>(d->registers) >= then.from)
        std::memcpy(&then.bytes[size_t(reinterpret_cast<char*>(d->registers) - then.from)], d->registers, bytes);
      warp.on_their_way[lane].erase(d->registers);
    }
    ++w.warps_that_waited;
  }
  while (!group.wgmmas.empty() && group.wgmmas.front().warps_that_waited == 4) {
    group.wgmmas.pop_front();
    ++group.first;
  }
}

}  // namespace

void check_descriptor(const void* start, uint32_t leading_bytes, uint32_t stride_bytes) {
  if (offset_in_shared(start) % 16 || leading_bytes % 16 || stride_bytes % 16)
    fail("wgmma_descriptor: start, leading_bytes and stride_bytes must be multiples of 16");
  if (leading_bytes >= 1 << 18 || stride_bytes >= 1 << 18)
    fail("wgmma_descriptor: leading_bytes and stride_bytes must be below 2^18");
}

void wgmma_fence(Where where) {
  check_whole_warpgroup("wgmma_fence", where);
  if (removed(where)) return;
  char nothing;
  meet_warp(~0u, "wgmma_fence", only_meet, &nothing, false, where);
  FencedRegisters& now = hopper().fenced[size_t(self->number)];
  now.from = static_cast<char*>(__builtin_frame_address(0));
  now.bytes.assign(now.from, self->fiber.stack + kStackBytes);
}

void wgmma(WgmmaShape shape, float* d, const uint32_t* a_registers, uint64_t a, uint64_t b, bool accumulate,
           Where where) {
  check_whole_warpgroup("wgmma", where);
  WgmmaFrame frame{shape, d, a_registers, a, b, accumulate, where, __builtin_return_address(0)};
  meet_warp(~0u, "wgmma", issue, &frame, false, where);
}

void wgmma_commit(Where where) {
  check_whole_warpgroup("wgmma_commit", where);
  if (removed(where)) return;
  const auto commit = [](void* const*, unsigned) {
    WgmmaWarp& warp = warp_of(hopper(), *self);
    warp.committed = warp.issued;
    warp.groups.push_back(warp.committed);
  };
  char nothing;
  meet_warp(~0u, "wgmma_commit", commit, &nothing, false, where);
}

void wgmma_wait(int pending, Where where) {
  check_whole_warpgroup("wgmma_wait", where);
  if (removed(where)) return;
  char nothing;
  meet_warp(~0u, "wgmma_wait", only_meet, &nothing, false, where);

  HopperBlock& units = hopper();
  Warpgroup& group = warpgroup_of(units, *self);
  WgmmaWarp& warp = warp_of(units, *self);
  if (int(warp.groups.size()) > pending) {  // the first lane here; the others find nothing left to wait for
    const size_t behind = warp.groups[warp.groups.size() - size_t(pending) - 1];
    const auto issued_by_all = [&group, behind] {
      return std::all_of(group.warps.begin(), group.warps.end(),
                         [&](const WgmmaWarp& w) { return w.issued >= behind; });
    };
    wait_until(issued_by_all, "wgmma_wait for the other warps of the warpgroup", where);
    compute_up_to(units, group, behind);
    hand_out(units, group, warp, *self, behind);
    while (!warp.groups.empty() && warp.groups.front() <= behind) warp.groups.pop_front();
  }
  observer::acquire(group.reads);
}

void check_wgmmas_finished(HopperBlock& units, const Thread& thread) {
  const size_t group_of = size_t(thread.warp) / 4;
  const WgmmaWarp& warp = warp_of(units, thread);
  if (warp.waited < warp.issued)
    fail("the thread returned without having waited for its wgmma",
         units.warpgroups[group_of].wgmmas[warp.waited - units.warpgroups[group_of].first].where);
}

}  // namespace minigpt::emulator
