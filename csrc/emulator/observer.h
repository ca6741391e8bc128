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
void grid_met();
void release(Clock& clock);        // by the running thread, to the clock
void acquire(const Clock& clock);  // by the running thread, from it
#else
inline void launch_begins() {}
inline void block_begins(const Block&) {}
inline void block_ends(const Block&) {}
inline void accessed(const Access&) {}
inline void met(const std::vector<Thread*>&, const Clock&, bool) {}
inline void grid_met() {}
inline void release(Clock&) {}
inline void acquire(const Clock&) {}
#endif

}  // namespace minigpt::emulator::observer
