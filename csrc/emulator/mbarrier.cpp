// mbarriers, the fences of the async proxy, named barriers.
#include <cstdio>

#include "hopper_block.h"

namespace minigpt::emulator {
namespace {

constexpr uint64_t kMark = 0x7265697272616268;  // what an mbarrier's 8 bytes hold here: nobody else may write them
constexpr int64_t kMostBytes = (1 << 20) - 1;

std::string named(const Mbarrier& barrier) { return "the mbarrier made at " + text_of(barrier.made_at); }

}  // namespace

HopperBlock::HopperBlock(Block& of) : block(of) {
  const size_t threads = size_t(block_dim.x) * block_dim.y * block_dim.z;
  seen.assign(SharedMemory::kCapacity, char(0xff));
  warpgroups.resize((threads + 127) / 128);
  fenced.resize(threads);
  stores.resize(threads);
}

HopperBlock& hopper() {
  Block& block = *self->block;
  if (!block.hopper) block.hopper = std::make_shared<HopperBlock>(block);
  return *block.hopper;
}

void check_units_finished(const Thread& thread) {
  if (!thread.block->hopper) return;
  check_stores_finished(*thread.block->hopper, thread);
  check_wgmmas_finished(*thread.block->hopper, thread);
}

Mbarrier& HopperBlock::barrier(uint64_t* address, const char* what, Where where) {
  const auto found = barriers.find(address);
  if (found == barriers.end()) fail(std::string(what) + ": no mbarrier_init has been done there", where);
  if (*address != kMark) fail(std::string(what) + ": the memory of " + named(found->second) + " was written to", where);
  return found->second;
}

void Mbarrier::check_phase() {
  if (missing == 0 && bytes < 0)
    fail(named(*this) + ": all have arrived, and " + std::to_string(-bytes) + " bytes more came than they announced",
         made_at);
  if (missing == 0 && bytes == 0) {
    ++phase;
    missing = expected;
    ended = std::exchange(current, {});
  }
  std::snprintf(waits_for, sizeof waits_for, "mbarrier_wait for %d arrivals and %lld bytes", missing,
                static_cast<long long>(bytes));
}

void mbarrier_init(uint64_t* address, int arrivals, Where where) {
  if (removed(where)) return;
  if (offset_in_shared(address) % 8) fail("mbarrier_init: the mbarrier is not aligned to 8 bytes", where);
  if (arrivals < 1 || arrivals > kMostBytes)
    fail("mbarrier_init: arrivals must be 1 ... 1048575, got " + std::to_string(arrivals), where);
  HopperBlock& units = hopper();
  if (const auto old = units.barriers.find(address); old != units.barriers.end())
    fail("mbarrier_init where " + named(old->second) + " is; it needs mbarrier_inval first", where);
  observer::accessed({address, 8, true, false, false, __builtin_return_address(0)});
  *address = kMark;
  Mbarrier& barrier = units.barriers[address];
  barrier.number = units.barriers_made++;
  barrier.expected = barrier.missing = arrivals;
  barrier.made_by = self->number;
  barrier.made_at = where;
  barrier.check_phase();
}

void mbarrier_inval(uint64_t* address, Where where) {
  if (removed(where)) return;
  const Mbarrier& barrier = hopper().barrier(address, "mbarrier_inval", where);
  if (barrier.loads > 0) fail("mbarrier_inval: boxes of tma_load_2d are on their way to " + named(barrier), where);
  observer::accessed({address, 8, true, false, false, __builtin_return_address(0)});
  hopper().barriers.erase(address);
}

void mbarrier_arrive(uint64_t* address, int bytes, const char* what, Where where) {
  if (removed(where)) return;
  Mbarrier& barrier = hopper().barrier(address, what, where);
  observer::accessed({address, 8, false, false, false, __builtin_return_address(0)});
  if (barrier.missing == 0)
    fail(std::string(what) + ": more arrivals than the " + std::to_string(barrier.expected) + " of " + named(barrier),
         where);
  if (bytes < 0 || barrier.bytes + bytes > kMostBytes)
    fail(std::string(what) + ": " + std::to_string(barrier.bytes + bytes) + " bytes; an mbarrier counts up to 1048575",
         where);
  barrier.bytes += bytes;
  --barrier.missing;
  observer::release(barrier.current);
  barrier.check_phase();
}

void mbarrier_wait(uint64_t* address, int parity, Where where) {
  if (removed(where)) return;
  Mbarrier& barrier = hopper().barrier(address, "mbarrier_wait", where);
  if (parity != 0 && parity != 1) fail("mbarrier_wait: parity must be 0 or 1, got " + std::to_string(parity), where);
  observer::accessed({address, 8, false, false, false, __builtin_return_address(0)});
  wait_until([&barrier, parity] { return int(barrier.phase & 1) != parity; }, barrier.waits_for, where);
  observer::acquire(barrier.ended);
}

void fence_barrier_init(Where where) {
  if (removed(where)) return;
  for (auto& [address, barrier] : hopper().barriers)
    if (barrier.made_by == self->number) barrier.seen_by_units = true;
}

void fence_proxy_async(Where where) {
  if (removed(where)) return;
  HopperBlock& units = hopper();
  std::memcpy(units.seen.data(), units.block.shared.memory, units.block.shared.used);
  for (auto& [address, barrier] : units.barriers) barrier.seen_by_units = true;
}

void named_barrier(int id, int threads, bool wait, const char* what, Where where) {
  if (id < 1 || id > 15) fail(std::string(what) + ": id must be 1 ... 15, got " + std::to_string(id), where);
  if (threads < 32 || threads > 1024 || threads % 32)
    fail(std::string(what) + ": threads must be a multiple of 32 up to 1024, got " + std::to_string(threads), where);
  meet_block(id, threads, wait, what, where);
}

}  // namespace minigpt::emulator
