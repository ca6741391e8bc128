// Where threads meet: at the barriers of a block, of a grid, and in the collective operations of a warp.
#include <algorithm>
#include <utility>

#include "block.h"
#include "emulator.h"
#include "observer.h"
#include "scheduler.h"

namespace minigpt::emulator {
namespace {

// `last`: the thread whose arrival opens it, if it waits for the others too.
void open_barrier(Barrier& barrier, Thread* last, bool whole_block) {
  ++statistics.meetings;
  const Barrier opened = std::exchange(barrier, {});
  std::vector<Thread*> together = opened.waiting;
  if (last) together.push_back(last);
  observer::met(together, opened.clock, whole_block);
  for (Thread* thread : opened.waiting) make_ready(thread);
}

// The lanes of a thread's warp that have not returned.
unsigned lanes_of(const Thread& thread) {
  const int first = thread.warp * 32, threads = int(block_dim.x * block_dim.y * block_dim.z);
  unsigned lanes = 0;
  for (int lane = 0; lane < std::min(32, threads - first); ++lane)
    lanes |= unsigned(thread.block->threads[first + lane]->state != Thread::finished) << lane;
  return lanes;
}

// All that a meeting still waited for are there, by the arrival or the return of `last`.
void hold(std::vector<WarpMeeting>& meetings, ptrdiff_t which, const Thread& last) {
  ++statistics.meetings;
  const WarpMeeting all = meetings[size_t(which)];
  meetings.erase(meetings.begin() + which);
  all.run(all.frames, all.here);
  std::vector<Thread*> together;
  for (int lane = 0; lane < 32; ++lane)
    if (all.here >> lane & 1) together.push_back(last.block->threads[last.warp * 32 + lane].get());
  if (all.orders_memory) observer::met(together, {}, false);
  if (all.here == lanes_of(last)) observer::converged(last);
  for (Thread* thread : together)
    if (thread != &last) make_ready(thread);
}

}  // namespace

void meet_block(int id, int expected, bool wait, const char* what, Where where) {
  if (removed(where)) return;
  Block& block = *self->block;
  if (id < 0 || id > 15) fail(std::string(what) + ": there is no barrier " + std::to_string(id), where);
  Barrier& barrier = block.barriers[id];
  if (barrier.arrived > 0) {
    if (id == 0 && !same(barrier.where, where))
      fail("__syncthreads reached at two places: " + text_of(barrier.where) + " and " + text_of(where), where);
    if (barrier.expected != expected)
      fail(std::string(what) + " (" + text_of(where) + ") for " + std::to_string(expected) + " threads, but " +
               text_of(barrier.where) + " said " + std::to_string(barrier.expected),
           where);
  }
  barrier.where = where;
  barrier.expected = expected;
  if (!wait) observer::release(barrier.clock);
  if (++barrier.arrived == (expected ? expected : block.live)) {
    open_barrier(barrier, wait ? self : nullptr, expected == 0);
    if (!wait && in_order()) return;
    make_ready(self);
    give_way();
  } else if (wait) {
    barrier.waiting.push_back(self);
    wait_here(what, where);
  }
}

void meet_grid(Where where) {
  if (removed(where)) return;
  size_t live = 0;
  for (const Block* block : running) live += size_t(block->live);
  at_grid_barrier.push_back(self);
  if (at_grid_barrier.size() < live) return wait_here("grid barrier", where);
  ++statistics.meetings;
  observer::grid_met();
  for (Thread* thread : std::exchange(at_grid_barrier, {})) make_ready(thread);
  give_way();
}

void meet_warp(unsigned mask, const char* what, WarpFunction run, void* frame, bool orders_memory, Where where) {
  Thread& me = *self;
  if (!(mask >> me.lane & 1))
    fail(std::string(what) + " (" + text_of(where) + "): the calling lane " + std::to_string(me.lane) +
             " is not in its own mask",
         where);
  auto& meetings = me.block->meetings[me.warp];
  auto meeting = std::find_if(meetings.begin(), meetings.end(), [&](const WarpMeeting& m) { return m.mask & mask; });
  if (meeting == meetings.end()) {
    meetings.push_back({mask, what, run, orders_memory, where, me.lane, 0, {}});
    meeting = meetings.end() - 1;
  } else if (meeting->mask != mask || meeting->run != run || !same(meeting->where, where)) {
    fail("warp divergence: lane " + std::to_string(me.lane) + " is at " + what + " (" + text_of(where) + "), lane " +
             std::to_string(meeting->first_lane) + " at " + meeting->what + " (" + text_of(meeting->where) + ")",
         where);
  }
  meeting->frames[me.lane] = frame;
  meeting->here |= 1u << me.lane;
  if (meeting->here != (mask & lanes_of(me))) return wait_here(what, where);
  hold(meetings, meeting - meetings.begin(), me);
  if (!in_order()) {
    make_ready(&me);
    give_way();
  }
}

void left(Thread& thread) {
  Block& block = *thread.block;
  Barrier& barrier = block.barriers[0];
  if (block.live > 0 && barrier.arrived == block.live) open_barrier(barrier, nullptr, true);
  auto& meetings = block.meetings[thread.warp];
  for (size_t i = meetings.size(); i-- > 0;)
    if (meetings[i].here == (meetings[i].mask & lanes_of(thread))) hold(meetings, ptrdiff_t(i), thread);
}

}  // namespace minigpt::emulator
