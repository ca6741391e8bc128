// Which thread runs next, and how a grid is run. Where threads meet stands in meetings.cpp.
#include "scheduler.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <map>
#include <numeric>
#include <stdexcept>

#include "block.h"
#include "emulator.h"
#include "faults.h"
#include "observer.h"

namespace minigpt::emulator {

Thread* self = nullptr;
dim3 grid_dim, block_dim;
const char* kernel_name = "";
Settings settings;
Statistics statistics{};
Failure last_failure;

std::vector<Block*> running;
std::vector<Thread*> at_grid_barrier;

namespace {

// In order, or: the newest first, so that one warp runs far ahead; any; or the warps in a fixed random order, the first as
// far as it gets. Drawn for each block.
enum class Schedule { in_order, newest_first, any, by_warp };

struct Poller {
  Thread* thread;
  std::function<bool()> ready;
};

Fiber caller;
std::vector<std::unique_ptr<Block>> pool;  // blocks that have run, kept for their stacks
const std::function<void()>* body = nullptr;
std::deque<Thread*> ready_threads;
std::vector<Poller> pollers;
std::deque<std::function<void()>> unfinished;  // asynchronous work
Schedule schedule = Schedule::in_order;
uint64_t random_state = 0;
std::string error;

uint64_t random_below(uint64_t n) {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return (random_state * 0x2545F4914F6CDD1Dull >> 33) % n;
}

std::string text_of(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

void switch_to(Thread* to) {
  Fiber& from = self ? self->fiber : caller;
  self = to;
  ++statistics.switches;
  switch_fiber(from, to ? to->fiber : caller);
}

// The oldest in order; otherwise any: a GPU's copies overtake each other.
void finish_work() {
  const auto next = unfinished.begin() + ptrdiff_t(in_order() ? 0 : random_below(unfinished.size()));
  const auto work = std::move(*next);
  unfinished.erase(next);
  work();
}

void ask_pollers() {
  for (size_t i = 0; i < pollers.size();) {
    if (pollers[i].ready()) {
      make_ready(pollers[i].thread);
      pollers.erase(pollers.begin() + static_cast<ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
}

std::string deadlock() {
  struct Place {
    int threads;
    const Thread* first;
  };
  std::string report = "deadlock:";
  for (const Block* block : running) {
    std::map<std::string, Place> places;
    for (int i = 0; i < int(block_dim.x * block_dim.y * block_dim.z); ++i) {
      const Thread* thread = block->threads[i].get();
      const std::string place = thread->state == Thread::finished
                                    ? "returned"
                                    : std::string("wait at ") + thread->waits_for + " (" + text_of(thread->where) + ")";
      ++places.try_emplace(place, Place{0, thread}).first->second.threads;
    }
    for (const auto& [place, who] : places)
      report += "\n  block " + text_of(block->index) + ": " + std::to_string(who.threads) + " threads " + place +
                ", the first is thread " + text_of(who.first->index);
  }
  return report;
}

Thread* take(size_t i) {
  Thread* const thread = ready_threads[i];
  ready_threads.erase(ready_threads.begin() + static_cast<ptrdiff_t>(i));
  return thread;
}

// The thread to run now; null where all have returned, or wait for ever.
Thread* next_thread() {
  for (;;) {
    if (!in_order() && !unfinished.empty() && random_below(64) == 0) {
      finish_work();
      ask_pollers();
    }
    const size_t n = ready_threads.size();
    if (n > 0) {
      switch (schedule) {
        case Schedule::in_order:
          return take(0);
        case Schedule::newest_first:
          return take(n - 1);
        case Schedule::any:
          return take(random_below(n));
        case Schedule::by_warp: {
          const auto rank = [](const Thread* t) { return t->block->warp_rank[t->warp]; };
          size_t best = 0;
          for (size_t i = 1; i < n; ++i)
            if (rank(ready_threads[i]) < rank(ready_threads[best])) best = i;
          return take(best);
        }
      }
    }
    if (!unfinished.empty()) {
      finish_work();
      ask_pollers();
      continue;
    }
    ask_pollers();
    if (!ready_threads.empty()) continue;
    for (const Block* block : running) {
      if (block->live == 0) continue;
      for (const auto& thread : block->threads) {
        if (thread->state != Thread::waiting) continue;
        last_failure = {deadlock(), kernel_name, thread->where.file, thread->where.line, block->index, thread->index};
        error = last_failure.what;
        return nullptr;
      }
    }
    return nullptr;
  }
}

}  // namespace

bool in_order() { return schedule == Schedule::in_order; }

void make_ready(Thread* thread) {
  thread->state = Thread::ready;
  ready_threads.push_back(thread);
}

void give_way() {
  if (interrupted && self) fail("interrupted");
  Thread* const next = next_thread();
  if (next != self) switch_to(next);
}

void wait_here(const char* what, Where where) {
  self->state = Thread::waiting;
  self->waits_for = what;
  self->where = where;
  give_way();
}

namespace {

void thread_main() {
  (*body)();
  Thread* const me = self;
  for (const auto& group : me->copy_groups)
    if (!group.empty()) fail("the thread returned without having waited for its cp.async copies");
  if (!me->open_copies.empty()) fail("the thread returned without having committed its cp.async copies");
  check_units_finished(*me);
  me->state = Thread::finished;
  --me->block->live;
  left(*me);
  give_way();
  std::abort();  // nobody switches to a thread that has finished
}

void start_block(Block& block, uint3 index, int64_t number, size_t dynamic_bytes) {
  const int n = int(block_dim.x * block_dim.y * block_dim.z);
  block.index = index;
  block.number = number;
  block.live = n;
  block.barriers.fill({});
  for (auto& meetings : block.meetings) meetings.clear();
  block.shared.reset(dynamic_bytes);
  block.hopper.reset();
  for (int i = 0; i < 32; ++i) {
    const auto j = random_below(i + 1);
    block.warp_rank[i] = block.warp_rank[j];
    block.warp_rank[j] = i;
  }
  while (int(block.threads.size()) < n) block.threads.push_back(std::make_unique<Thread>());
  for (int i = 0; i < n; ++i) {
    Thread& thread = *block.threads[i];
    thread.block = &block;
    thread.block_index = index;
    thread.number = i;
    thread.lane = i % 32;
    thread.warp = i / 32;
    thread.index = {i % block_dim.x, i / block_dim.x % block_dim.y, i / (block_dim.x * block_dim.y)};
    thread.open_copies.clear();
    thread.copy_groups.clear();
    thread.fiber.prepare(thread_main);
    make_ready(&thread);
  }
  ++statistics.blocks;
  observer::block_begins(block);
}

void run_blocks() {
  schedule = settings.seed ? Schedule(1 + random_below(3)) : Schedule::in_order;
  give_way();
  self = nullptr;
  for (Block* block : running) {
    if (error.empty()) {
      error = block->shared.written_gap();
      last_failure = {error, kernel_name, "", 0, block->index, {}};
    }
    observer::block_ends(*block);
    for (auto& thread : block->threads) thread->state = Thread::finished;
  }
  ready_threads.clear();
  pollers.clear();
  unfinished.clear();
  at_grid_barrier.clear();
  running.clear();
  if (!error.empty()) {
    const uint3 block = last_failure.block, thread = last_failure.thread;
    throw std::runtime_error("CUDA emulator: " + error + "\n  in " + kernel_name + ", block " + text_of(block) +
                             ", thread " + text_of(thread) +
                             (settings.seed ? ", seed " + std::to_string(settings.seed) : ""));
  }
}

}  // namespace

bool same(Where a, Where b) { return a.line == b.line && (a.file == b.file || !std::strcmp(a.file, b.file)); }

std::string text_of(Where where) {
  const char* const slash = std::strrchr(where.file, '/');
  return std::string(slash ? slash + 1 : where.file) + ":" + std::to_string(where.line);
}

void fail(const std::string& what, Where where) {
  error = what;
  last_failure = {what, kernel_name, where.file, where.line, {}, {}};
  if (!self) throw std::runtime_error("CUDA emulator: " + what);
  last_failure.block = self->block->index;
  last_failure.thread = self->index;
  switch_to(nullptr);
  std::abort();  // a launch that failed is not gone on with
}

void wait_until(std::function<bool()> ready, const char* what, Where where) {
  if (ready()) return;
  pollers.push_back({self, std::move(ready)});
  wait_here(what, where);
}

void may_spin() {
  constexpr int kOften = 64;
  if (++self->atomics % kOften) return;
  make_ready(self);
  give_way();
}

void later(std::function<void()> work) { unfinished.push_back(std::move(work)); }

void* static_shared(const void* key, size_t bytes, size_t alignment) {
  return self->block->shared.variable(key, bytes, alignment);
}
unsigned char* dynamic_shared() { return reinterpret_cast<unsigned char*>(self->block->shared.memory); }
size_t dynamic_shared_bytes() { return self->block->shared.dynamic_bytes; }

void run_grid(const char* name, dim3 grid, dim3 block, size_t dynamic_bytes, bool cooperative,
              const std::function<void()>& kernel) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  const auto refuse = [&](const std::string& why) {
    last_failure = {why, name, "", 0, {}, {}};
    throw std::runtime_error(std::string("CUDA emulator: ") + name + ": " + why);
  };
  if (threads < 1 || threads > 1024) refuse(std::to_string(threads) + " threads a block; allowed are 1 ... 1024");
  if (blocks < 1) refuse("a grid without blocks");
  if (grid.y > 65535 || grid.z > 65535) refuse("grid y and z end at 65535");
  if (dynamic_bytes > SharedMemory::kMost)
    refuse(std::to_string(dynamic_bytes) + " bytes of dynamic shared memory; an H100 has 232448");
  if (cooperative && blocks > 64)
    refuse(std::to_string(blocks) + " blocks in a cooperative launch; the emulator holds up to 64 at once");

  ++statistics.launches;
  kernel_name = name;
  grid_dim = grid;
  block_dim = block;
  body = &kernel;
  error.clear();
  random_state = settings.seed * 0x9E3779B97F4A7C15ull + 88172645463325252ull;
  observer::launch_begins();
  const FaultHandler faults;  // an access that the hardware refuses becomes a failure of the launch
  // Under a seed blocks come in a random order too: step is coprime to their number, so that each comes once.
  uint64_t number = settings.seed ? random_below(blocks) : 0, step = 1;
  if (settings.seed) do
      step = 1 + random_below(blocks);
    while (std::gcd(step, blocks) != 1);
  for (uint64_t begun = 1; begun <= blocks; ++begun, number = (number + step) % blocks) {
    const uint3 index = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y),
                         unsigned(number / (uint64_t(grid.x) * grid.y))};
    if (pool.size() <= running.size()) pool.push_back(std::make_unique<Block>());
    Block& next = *pool[running.size()];
    running.push_back(&next);
    start_block(next, index, int64_t(number), dynamic_bytes);
    if (!cooperative || begun == blocks) run_blocks();
  }
}

}  // namespace minigpt::emulator
