// The checker of the checking build: every access of every thread is seen, and compared with those before it.
//
// Order is told by vector clocks. A thread's own clock counts its meetings; clock(t, u) is the last moment of u that is
// ordered before what t does now. Where the whole block meets, all that was done before is `settled`, and nobody's past needs
// to be kept apart. Clocks only grow, from block to block too, so that what is known of a byte never needs clearing.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <memory>
#include <stdexcept>
#include <unordered_map>

#include "counters.h"
#include "memory.h"
#include "observer.h"
#include "places.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

namespace minigpt::emulator {

// What is known of one byte of shared memory: of writes and of reads the last one, and the last one by another thread. When
// each thread last read it stands in BlockShadow::reads.
struct SharedWrite {
  uint32_t clock;
  uint16_t thread;
  bool atomic;
  const void* code;
};

struct SharedRead {
  uint16_t thread;
  const void* code;
};

struct SharedByte {
  SharedWrite writes[2];
  SharedRead reads[2];
  uint32_t read;  // the highest of the readers' clocks
  bool copying;   // written by a copy that has not been waited for
};

struct BlockShadow {
  uint32_t begun = 0;    // clocks up to this one are of earlier blocks
  uint32_t settled = 0;  // everything up to this one is ordered before everything now
  uint32_t latest = 0;
  std::vector<uint32_t> own;                  // by thread
  std::vector<std::vector<uint32_t>> others;  // others[t][u], where higher than settled
  SharedByte* bytes = nullptr;                // of shared memory
  uint32_t* reads = nullptr;                  // [thread][byte]: when each thread last read it

  uint32_t clock(int t, int u) const { return std::max(settled, others[t][u]); }
};

namespace observer {
namespace {

// An access to a byte of a tensor. Of writes and of reads the last one is kept, and the last one by another thread.
struct GlobalAccess {
  uint32_t epoch = 0, clock = 0;
  int64_t block = 0;
  uint16_t thread = 0;
  bool atomic = false;
  const void* code = nullptr;
};

struct GlobalByte {
  GlobalAccess writes[2], reads[2];
};

constexpr size_t kChunk = 1024;
using Chunk = std::array<GlobalByte, kChunk>;

std::unordered_map<const Block*, BlockShadow> shadows;
std::vector<const Block*> running;
std::unordered_map<uintptr_t, std::unique_ptr<Chunk>> chunks;  // of writable tensors, where they were touched
uint32_t epoch = 1;                                            // launches, and meetings of a whole grid, are ordered

template <class T>
T* untouched(size_t count) {
  void* memory =
      mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("CUDA emulator: no memory for the race checker");
  return static_cast<T*>(memory);
}

void settle(BlockShadow& shadow) {
  shadow.settled = shadow.latest++;
  std::fill(shadow.own.begin(), shadow.own.end(), shadow.latest);
}

// Clocks behind those of the threads: of TMA's copies, that write but wait for nobody. Copies that count as different
// units' are not ordered between themselves.
constexpr size_t kUnits = 16;

std::string who(int thread, const void* code) {
  const bool unit = thread >= int(block_dim.x * block_dim.y * block_dim.z);
  return (unit ? "TMA, started" : "thread " + std::to_string(thread)) + " at " + place_of(code);
}

[[noreturn]] void report(const std::string& what, const std::string& first, const void* code,
                         const std::string& second = "") {
  fail(what + ": " + first + " and " + second + who(self->number, code) +
           ", with nothing between them that orders the two",
       where_is(code));
}

// ---- shared memory ------------------------------------------------------------------------------------------------

std::string in_shared(const SharedVariable& v, ptrdiff_t byte) {
  return "byte " + std::to_string(byte) + (v.key ? " of a shared variable of " : " of the ") + std::to_string(v.bytes) +
         (v.key ? " bytes" : " bytes of dynamic shared memory");
}

const SharedVariable& variable_at(const Access& a) {
  const SharedMemory& shared = self->block->shared;
  const char* const p = static_cast<const char*>(a.address);
  const SharedVariable* nearest = nullptr;
  const auto distance = [&](const SharedVariable& v) { return p < v.memory ? v.memory - p : p - (v.memory + v.bytes); };
  for (const SharedVariable& v : shared.variables) {
    if (p >= v.memory && p + a.bytes <= v.memory + v.bytes) return v;
    if (v.bytes > 0 && (!nearest || distance(v) < distance(*nearest))) nearest = &v;
  }
  fail(std::string("out of bounds: ") + (a.write ? "write of " : "read of ") + std::to_string(a.bytes) +
           " bytes of shared memory, " +
           (nearest ? in_shared(*nearest, p - nearest->memory) : std::string("of which the block has none")) + ", at " +
           place_of(a.code),
       where_is(a.code));
}

// Whether another thread has read byte i, not ordered before this write. The line is known of the last readers alone.
void check_readers(const BlockShadow& shadow, const SharedByte& byte, size_t i, const std::string& name,
                   const void* code) {
  const auto races = [&](int u) {
    return u != self->number && shadow.reads[size_t(u) * SharedMemory::kCapacity + i] > shadow.clock(self->number, u);
  };
  const std::string what = "race on shared memory (write after read), " + name;
  for (const SharedRead& read : byte.reads)
    if (races(read.thread)) report(what, who(read.thread, read.code), code);
  for (int u = 0; u < int(shadow.own.size()); ++u)
    if (races(u)) report(what, "thread " + std::to_string(u), code);
}

void check_shared(const Access& a) {
  const SharedVariable& variable = variable_at(a);
  BlockShadow& shadow = shadows.at(self->block);
  const int me = self->number;
  const size_t first = size_t(static_cast<const char*>(a.address) - self->block->shared.memory);
  const auto named = [&](size_t i) { return in_shared(variable, self->block->shared.memory + i - variable.memory); };
  uint32_t* const my_reads = shadow.reads + size_t(me) * SharedMemory::kCapacity;
  for (size_t i = first; i < first + a.bytes; ++i) {
    SharedByte& byte = shadow.bytes[i];
    for (const SharedWrite& write : byte.writes)
      if (write.clock > shadow.settled && write.thread != me && !(a.atomic && write.atomic) &&
          write.clock > shadow.clock(me, write.thread))
        report(std::string("race on shared memory (") + (a.write ? "write after write" : "read after write") + "), " +
                   named(i),
               who(write.thread, write.code), a.code);
    if (!a.write || a.atomic) {
      if (byte.writes[0].clock <= shadow.begun)
        fail("read of uninitialised shared memory, " + named(i) + ", at " + place_of(a.code), where_is(a.code));
      if (byte.copying)
        fail("read of shared memory that an asynchronous copy (" + who(byte.writes[0].thread, byte.writes[0].code) +
                 ") is still writing, " + named(i) + ", at " + place_of(a.code),
             where_is(a.code));
    }
    if (a.write) {
      if (byte.read > shadow.settled) check_readers(shadow, byte, i, named(i), a.code);
      if (byte.writes[0].thread != me) byte.writes[1] = byte.writes[0];
      byte.writes[0] = {shadow.own[me], uint16_t(me), a.atomic, a.code};
      byte.copying = a.asynchronous;
    } else {
      my_reads[i] = shadow.own[me];
      byte.read = std::max(byte.read, shadow.own[me]);
      if (byte.reads[0].thread != me) byte.reads[1] = byte.reads[0];
      byte.reads[0] = {uint16_t(me), a.code};
    }
  }
}

// ---- device memory ------------------------------------------------------------------------------------------------

GlobalByte& byte_at(const char* address) {
  const auto number = reinterpret_cast<uintptr_t>(address) / kChunk;
  auto& chunk = chunks[number];
  if (!chunk) chunk = std::make_unique<Chunk>();
  return (*chunk)[reinterpret_cast<uintptr_t>(address) % kChunk];
}

void check_global(const Access& a) {
  const char* const p = static_cast<const char*>(a.address);
  const memory::Buffer* const buffer = memory::nearest(p);
  const std::string what = std::string(a.write ? "write of " : "read of ") + std::to_string(a.bytes) + " bytes";
  if (!buffer || p + a.bytes > buffer->end)
    fail("out of bounds: " + what + ", " + memory::describe(p) + ", at " + place_of(a.code), where_is(a.code));
  if (!buffer->writable) {
    if (a.write) fail(what + " to an input, at " + place_of(a.code), where_is(a.code));
    return;
  }
  const BlockShadow& shadow = shadows.at(self->block);
  const GlobalAccess mine = {epoch, shadow.own[self->number], self->block->number, uint16_t(self->number), a.atomic,
                             a.code};
  const auto same_thread = [&](const GlobalAccess& other) {
    return other.block == mine.block && other.thread == mine.thread;
  };
  for (const char* q = p; q < p + a.bytes; ++q) {
    GlobalByte& byte = byte_at(q);
    const auto check = [&](const GlobalAccess(&others)[2], const char* kind) {
      for (const GlobalAccess& other : others) {
        if (other.epoch != epoch || same_thread(other) || (a.atomic && other.atomic)) continue;
        if (other.block == mine.block && other.clock <= shadow.clock(mine.thread, other.thread)) continue;
        report(std::string("race on global memory (") + kind + "), byte " + std::to_string(q - buffer->begin) +
                   " of a tensor of " + std::to_string(buffer->end - buffer->begin) + " bytes",
               "block " + std::to_string(other.block) + ", " + who(other.thread, other.code), a.code,
               "block " + std::to_string(mine.block) + ", ");
      }
    };
    check(byte.writes, a.write ? "write after write" : "read after write");
    if (a.write) check(byte.reads, "write after read");
    auto& kept = a.write ? byte.writes : byte.reads;
    if (!same_thread(kept[0])) kept[1] = kept[0];
    kept[0] = mine;
  }
}

}  // namespace

// ---- what the scheduler tells -------------------------------------------------------------------------------------

void launch_begins() {
  ++epoch;
  chunks.clear();
}

void block_begins(const Block& block) {
  const size_t threads = size_t(block_dim.x) * block_dim.y * block_dim.z;
  BlockShadow& shadow = shadows[&block];
  if (!shadow.bytes) {
    shadow.bytes = untouched<SharedByte>(SharedMemory::kCapacity);
    shadow.reads = untouched<uint32_t>(SharedMemory::kCapacity * (1024 + kUnits));
  }
  shadow.begun = shadow.latest;
  shadow.own.resize(threads + kUnits);
  shadow.others.assign(threads + kUnits, std::vector<uint32_t>(threads + kUnits, 0));
  settle(shadow);
  running.push_back(&block);
  if (counters::counting) counters::block_begins(block);
}

void block_ends(const Block& block) {
  running.erase(std::find(running.begin(), running.end(), &block));
  if (counters::counting) counters::block_ends(block);
}

void met(const std::vector<Thread*>& threads, const Clock& others, bool whole_block) {
  if (threads.empty()) return;
  BlockShadow& shadow = shadows.at(threads.front()->block);
  if (whole_block) {
    if (counters::counting) counters::met(*threads.front()->block);
    return settle(shadow);
  }
  Clock all = others;
  all.resize(shadow.own.size(), 0);
  for (const Thread* t : threads) {
    const std::vector<uint32_t>& known = shadow.others[t->number];
    for (size_t u = 0; u < all.size(); ++u) all[u] = std::max(all[u], known[u]);
    all[t->number] = std::max(all[t->number], shadow.own[t->number]);
  }
  for (const Thread* t : threads) {
    shadow.others[t->number] = all;
    shadow.latest = std::max(shadow.latest, ++shadow.own[t->number]);
  }
}

void converged(const Thread& thread) {
  if (counters::counting) counters::met(*thread.block, thread.warp);
}

void multiplied(int64_t flops) {
  if (counters::counting) counters::multiplied(flops);
}

void grid_met() {
  for (const Block* block : running) settle(shadows.at(block));
  ++epoch;
}

void release(Clock& clock) {
  BlockShadow& shadow = shadows.at(self->block);
  const int me = self->number;
  clock.resize(shadow.own.size(), 0);
  for (size_t u = 0; u < clock.size(); ++u) clock[u] = std::max(clock[u], shadow.clock(me, int(u)));
  clock[me] = std::max(clock[me], shadow.own[me]);
  shadow.latest = std::max(shadow.latest, ++shadow.own[me]);
}

void acquire(const Clock& clock) {
  std::vector<uint32_t>& known = shadows.at(self->block).others[self->number];
  for (size_t u = 0; u < clock.size() && u < known.size(); ++u) known[u] = std::max(known[u], clock[u]);
}

void landed(const Block& block, const Access& a, int by, Clock& clock) {
  BlockShadow& shadow = shadows.at(&block);
  const size_t unit = shadow.own.size() - kUnits + size_t(by) % kUnits;
  SharedByte* const bytes = shadow.bytes + (static_cast<const char*>(a.address) - block.shared.memory);
  for (size_t i = 0; i < a.bytes; ++i) {
    if (!bytes[i].copying) bytes[i].writes[1] = bytes[i].writes[0];  // else it is this copy's beginning
    bytes[i].writes[0] = {shadow.own[unit], uint16_t(unit), false, a.code};
    bytes[i].copying = false;
  }
  clock.resize(shadow.own.size(), 0);
  clock[unit] = shadow.own[unit];
  shadow.latest = std::max(shadow.latest, ++shadow.own[unit]);
}

void accessed(const Access& a) {
  if (!self || self->fiber.owns(a.address)) return;
  const char *const p = static_cast<const char*>(a.address), *const shared = self->block->shared.memory;
  const bool in_shared = p >= shared && p < shared + SharedMemory::kCapacity;
  if (!in_shared && !memory::is_device(p)) return;
  if (counters::counting) counters::accessed(a, in_shared);
  in_shared ? check_shared(a) : check_global(a);
}

}  // namespace observer
}  // namespace minigpt::emulator
