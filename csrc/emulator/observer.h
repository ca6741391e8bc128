// What the checking build hears of a kernel: every access to memory, and every meeting that orders accesses. The kernels of
// that build are compiled with -fsanitize=thread, whose calls arrive in tsan.cpp; here, as in the plain build, nothing
// is to be heard from the emulator's own work.
#pragma once
#include <cstddef>
#include <vector>

#include "block.h"

namespace minigpt::emulator::observer {

struct Access {
  const void* address;
  size_t bytes;
  bool write = false, atomic = false;
  bool asynchronous = false;   // begins now, ends when it is waited for
  const void* code = nullptr;  // the instruction behind it
  bool by_unit = false;        // TMA or wgmma, which no warp's lanes take part in
};

// The clocks that a synchronisation object in memory (an mbarrier) hands from those that arrive to those that wait.
using Clock = std::vector<uint32_t>;

#ifdef MINIGPT_EMULATOR_CHECKED
void launch_begins();
void block_begins(const Block& block);
void block_ends(const Block& block);
void accessed(const Access& access);
// All that these threads, and those that left the clock, did before is ordered before all that these do now.
void met(const std::vector<Thread*>& threads, const Clock& others, bool whole_block);
void converged(const Thread& thread);  // and all other lanes of its warp are at one place
void multiplied(int64_t flops);        // by the tensor cores
void grid_met();
void release(Clock& clock);        // by the running thread, to the clock
void acquire(const Clock& clock);  // by the running thread, from it
// An asynchronous write that no thread waits for by itself (TMA's) has ended: seen by those that acquire the clock.
// unit: the same for writes that end in a known order.
void landed(const Block& block, const Access& access, int unit, Clock& clock);
#else
inline void launch_begins() {}
inline void block_begins(const Block&) {}
inline void block_ends(const Block&) {}
inline void accessed(const Access&) {}
inline void met(const std::vector<Thread*>&, const Clock&, bool) {}
inline void converged(const Thread&) {}
inline void multiplied(int64_t) {}
inline void grid_met() {}
inline void release(Clock&) {}
inline void acquire(const Clock&) {}
inline void landed(const Block&, const Access&, int, Clock&) {}
#endif

}  // namespace minigpt::emulator::observer
