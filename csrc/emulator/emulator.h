// A GPU for tests, on one thread of the CPU. Every CUDA thread is a fiber; the blocks of a grid run one after another (or,
// launched cooperatively, together). Threads go on until they wait for each other: at a barrier, in a warp's collective
// operation, or for an asynchronous copy. What waits for ever, or meets in two places at once, is reported with its line.
//
// Not modelled: time, weak memory order, approximate arithmetic. In order (seed 0) or, with another seed, in one of many
// orders that a GPU is free to choose.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "fiber.h"

namespace minigpt::emulator {

// ---- who and where ------------------------------------------------------------------------------------------------

struct Where {
  const char* file;
  int line;
};
// As the last parameter of a function that kernels call: the caller's line.
#define EMULATOR_HERE ::minigpt::emulator::Where where = {__builtin_FILE(), __builtin_LINE()}

std::string text_of(Where where);  // "attention_forward.cuh:56"
bool same(Where a, Where b);

struct Block;

struct AsyncCopy {  // of cp.async: `given` bytes from `from`, zeros behind them; not landed yet
  char* to;
  const char* from;
  int bytes, given;
  const void* issued_at;
};

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  uint3 index{}, block_index{};        // threadIdx, blockIdx
  int number = 0, lane = 0, warp = 0;  // within the block
  enum { ready, waiting, finished } state = finished;
  unsigned atomics = 0;  // so far
  const char* waits_for = "";
  Where where{"", 0};
  std::vector<AsyncCopy> open_copies;               // since the last commit
  std::vector<std::vector<AsyncCopy>> copy_groups;  // committed, not waited for; oldest first
};

extern Thread* self;  // the running CUDA thread; null outside kernels
extern dim3 grid_dim, block_dim;
extern const char* kernel_name;

struct Settings {
  uint64_t seed = 0;          // 0: threads in order; else the order is drawn from it
  Where removed{nullptr, 0};  // a barrier, commit, wait or fence there does nothing: what would a test say without it?
};
extern Settings settings;

// Whether the synchronisation at this line is left out, for the test that every one of them is needed.
inline bool removed(Where where) {
  return settings.removed.line == where.line && settings.removed.file && std::strstr(where.file, settings.removed.file);
}

// Ends the launch with an error: launch() throws it, with kernel, block and thread. `where` may be unknown (line 0).
[[noreturn]] void fail(const std::string& what, Where where = {"", 0});

struct Failure {  // the last one, in parts
  std::string what, kernel, file;
  int line = 0;
  uint3 block{}, thread{};
};
extern Failure last_failure;

// ---- meeting points -----------------------------------------------------------------------------------------------

// Barrier `id` (0: __syncthreads, 1 ... 15: named) of the running block. expected: how many threads meet there, 0 for all
// that have not returned. Without `wait` the thread only says that it has arrived.
void meet_block(int id, int expected, bool wait, const char* what, Where where);

// All blocks of a cooperative launch.
void meet_grid(Where where);

// The lanes of `mask` come together, each with a frame of its own; the last to arrive calls run(frames by lane, mask) for
// all of them. orders_memory: what they did before is visible to all afterwards.
using WarpFunction = void (*)(void* const* frames, unsigned mask);
void meet_warp(unsigned mask, const char* what, WarpFunction run, void* frame, bool orders_memory, Where where);

// Until ready() holds. It is asked again whenever an asynchronous operation has finished and when nobody else can go on.
void wait_until(std::function<bool()> ready, const char* what, Where where);

// Told of every atomic operation. A thread that makes many may be waiting for another: now and then that one runs.
void may_spin();

// Work of an asynchronous unit (TMA, tensor cores): done as late as may be in order, at any moment under a seed.
void later(std::function<void()> work);

// ---- memory -------------------------------------------------------------------------------------------------------

// 0xff in every byte: NaN in float, half and bfloat16, -1 in integers.
inline void poison(void* p, size_t bytes) { std::memset(p, 0xff, bytes); }

// A load or store of `bytes` at once, which a GPU refuses where the address is not aligned. code: the instruction behind
// it; null: the caller's.
void wide_access(const void* p, size_t bytes, size_t alignment, bool write, const void* code);

// Shared memory of the running block: of a size known to the compiler, one variable a key; and as launched.
void* static_shared(const void* key, size_t bytes, size_t alignment);
unsigned char* dynamic_shared();
size_t dynamic_shared_bytes();

// ---- launches -----------------------------------------------------------------------------------------------------

// Runs kernel() once for every thread of the grid. Throws std::runtime_error.
void run_grid(const char* name, dim3 grid, dim3 block, size_t dynamic_bytes, bool cooperative,
              const std::function<void()>& kernel);

struct Statistics {
  int64_t launches, blocks, switches, meetings;
};
extern Statistics statistics;

}  // namespace minigpt::emulator
