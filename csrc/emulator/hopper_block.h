// What Hopper's asynchronous units hold of a running block.
//
// TMA and wgmma reach shared memory by a way of their own ("the async proxy"): what threads write becomes visible to them at
// a fence_proxy_async. So there are two images of shared memory here: the threads' own, and `seen`, what the units see. A fence
// copies the first to the second, TMA's loads write both, TMA's stores and wgmma read the second; without the fence they read
// what was there before.
#pragma once
#include <array>
#include <deque>
#include <map>
#include <memory>

#include "../common/hopper.cuh"
#include "block.h"
#include "observer.h"

namespace minigpt::emulator {

struct Mbarrier {
  int number;                  // of the block's mbarriers
  int expected, missing;       // arrivals
  int64_t bytes = 0;           // announced and not come yet; below 0 while they come before they are announced
  unsigned phase = 0;          // that runs now; a wait asks for its parity
  bool seen_by_units = false;  // since a fence
  int loads = 0;               // of TMA, on their way
  int made_by = 0;             // thread
  Where made_at;
  observer::Clock current, ended;  // of this phase's arrivals, and of the last one's
  char waits_for[96];              // what a deadlock's report says

  void check_phase();  // goes on to the next where all has come
};

// The accumulators of one thread while wgmmas that will change them are on their way; its registers hold poison then.
struct Accumulators {
  float* registers;
  std::vector<float> values;
  int on_their_way = 0;
};

struct WgmmaPart {  // one thread's
  std::shared_ptr<Accumulators> d;
  const uint32_t* a_registers;
  std::array<uint32_t, 4> a;
};

struct Wgmma {
  WgmmaShape shape;
  uint64_t a, b;
  bool a_in_registers, accumulate, computed = false;
  int warps_that_issued = 0, warps_that_waited = 0;
  Where where;
  const void* code;
  std::array<WgmmaPart, 128> parts;
};

struct WgmmaWarp {
  size_t issued = 0;                 // wgmmas so far
  size_t committed = 0, waited = 0;  // of them, those before the last commit; those whose results were handed out
  std::deque<size_t> groups;         // `committed` after each group not waited for
  std::array<std::map<float*, std::shared_ptr<Accumulators>>, 32> on_their_way;  // by lane
};

struct Warpgroup {
  std::deque<Wgmma> wgmmas;  // not yet waited for by all four warps
  size_t first = 0;          // the number of the first of them
  size_t computed = 0;
  std::array<WgmmaWarp, 4> warps;
  observer::Clock reads;  // of shared memory by them: over when one has been waited for
};

// A thread's registers at its last wgmma_fence: its stack, where its variables are.
struct FencedRegisters {
  char* from = nullptr;
  std::vector<char> bytes;
};

struct TmaStore {
  TensorMap map;
  const char* from;
  int column, row;
  bool has_read = false, done = false;
  std::vector<char> data;
  Where where;
  const void* code;
};

struct TmaStores {  // of a thread
  std::vector<std::shared_ptr<TmaStore>> open;
  std::deque<std::vector<std::shared_ptr<TmaStore>>> groups;
};

struct HopperBlock {
  explicit HopperBlock(Block& block);
  Mbarrier& barrier(uint64_t* address, const char* what, Where where);

  Block& block;
  std::vector<char> seen;
  std::map<uint64_t*, Mbarrier> barriers;
  int barriers_made = 0;
  std::vector<Warpgroup> warpgroups;
  std::vector<FencedRegisters> fenced;  // by thread
  std::vector<TmaStores> stores;        // by thread
};

HopperBlock& hopper();  // of the running block; made when first asked for

// Fail where a thread that returns has left work of its own unfinished.
void check_stores_finished(HopperBlock& units, const Thread& thread);
void check_wgmmas_finished(HopperBlock& units, const Thread& thread);

inline uint32_t swizzled(uint32_t address, Swizzle swizzle) {
  const uint32_t mask = (1u << static_cast<int>(swizzle)) - 1;
  return address ^ (address >> 7 & mask) << 4;
}

}  // namespace minigpt::emulator
