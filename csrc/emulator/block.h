// What the scheduler keeps of a block while it runs. Kernels see none of it.
#pragma once
#include <array>
#include <map>
#include <memory>

#include "emulator.h"

namespace minigpt::emulator {

struct Barrier {
  int arrived = 0, expected = 0;
  Where where{"", 0};
  std::vector<Thread*> waiting;
  std::vector<uint32_t> clock;  // of those that arrived without waiting
};

struct WarpMeeting {
  unsigned mask;
  const char* what;
  WarpFunction run;
  bool orders_memory;
  Where where;
  int first_lane;
  unsigned here;  // the lanes that have come
  void* frames[32];
};

struct SharedVariable {
  const void* key;
  char* memory;
  size_t bytes;
};

// Shared memory: one piece with a page on either side that nothing may touch, and 64 bytes between variables that stay
// poisoned.
class SharedMemory {
 public:
  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  void reset(size_t dynamic_bytes);  // for a new block: no static variables, all poisoned
  void* variable(const void* key, size_t bytes, size_t alignment);
  std::string written_gap() const;  // what was written beside the variables, in words; empty where nothing was

  static constexpr size_t kCapacity = 256 * 1024, kGap = 64;
  static constexpr size_t kMost = 227 * 1024;  // what a block of an H100 may have
  char* memory = nullptr;
  size_t dynamic_bytes = 0, used = 0;
  std::vector<SharedVariable> variables;  // the dynamic piece first, with a null key
};

struct HopperBlock;  // what TMA, mbarriers and wgmma hold: hopper_block.h

struct Block {
  uint3 index{};
  int64_t number = 0;  // of the grid's blocks
  int live = 0;        // threads that have not returned
  std::vector<std::unique_ptr<Thread>> threads;
  std::array<Barrier, 16> barriers;
  std::array<std::vector<WarpMeeting>, 32> meetings;  // by warp
  std::array<int, 32> warp_rank{};                    // a random order of the warps, for one of the schedules
  SharedMemory shared;
  std::shared_ptr<HopperBlock> hopper;  // null until the block uses one of them
};

// Fails where a thread that returns has left TMA's or wgmma's work unfinished.
void check_units_finished(const Thread& thread);

}  // namespace minigpt::emulator
