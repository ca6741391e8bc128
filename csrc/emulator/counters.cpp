#include "counters.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <set>
#include <sstream>
#include <unordered_map>

#include "memory.h"

#define VISIBLE extern "C" __attribute__((visibility("default")))

namespace minigpt::emulator::counters {

bool counting = false;

namespace {

enum Kind { global_load, global_store, global_atomic, shared_load, shared_store, shared_atomic };
const char* const kNames[] = {"global load", "global store", "global atomic",
                              "shared load", "shared store", "shared atomic"};

struct Request {
  unsigned lanes = 0;  // that take part
  size_t bytes = 0;    // each of them
  std::array<uintptr_t, 32> address;
};

// What is known of an instruction: of global memory sectors, of shared memory wavefronts, of atomics the lanes on one address.
struct Tally {
  int64_t requests = 0, bytes = 0, units = 0, ideal = 0;
  int64_t worst = 0;  // most sectors, or lanes on one address, of a request; most words that met in a bank
  void add(int64_t u, int64_t i, int64_t w) { units += u, ideal += i, worst = std::max(worst, w); }
};

struct Instruction {
  const void* code;
  Kind kind;
  bool operator<(const Instruction& o) const { return code != o.code ? code < o.code : kind < o.kind; }
};

struct Launch {  // all of one kernel, grid, block and shared memory
  std::string kernel;
  dim3 grid, block;
  size_t dynamic_bytes, static_bytes = 0;
  int64_t launches = 0, read = 0, written = 0, flops = 0;
  std::map<Instruction, Tally> tallies{};
};

// Requests of one instruction whose lanes have not all come yet.
struct Waiting {
  std::deque<Request> requests;
  int64_t gone = 0;                    // complete ones, no longer in `requests`
  std::array<int64_t, 32> executed{};  // by lane, since the warp met
};
using Warp = std::map<Instruction, Waiting>;

std::deque<Launch> launches;
Launch* launch = nullptr;
std::map<const Block*, std::array<Warp, 32>> blocks;
std::unordered_map<const char*, std::vector<unsigned char>> touched;  // by buffer: 1 read, 2 written; of one launch
std::set<Instruction> asynchronous;

// ---- the rules ----------------------------------------------------------------------------------------------------

// Global memory: 32-byte sectors, the unit in which caches and memory are asked (Nsight Compute's Profiling Guide, "Sector").
// No request of these bytes could touch fewer than would hold them side by side.
void count_sectors(const Request& r, Tally& tally) {
  std::array<uintptr_t, 32> sorted;
  int n = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (r.lanes >> lane & 1) sorted[n++] = r.address[lane];
  std::sort(sorted.begin(), sorted.begin() + n);
  uintptr_t next_byte = 0, next_sector = 0;
  int64_t bytes = 0, sectors = 0;
  for (int i = 0; i < n; ++i) {
    const uintptr_t end = sorted[i] + r.bytes, end_sector = (end + 31) / 32;
    if (end > next_byte) bytes += int64_t(end - std::max(next_byte, sorted[i]));
    if (end_sector > next_sector) sectors += int64_t(end_sector - std::max(next_sector, sorted[i] / 32));
    next_byte = std::max(next_byte, end), next_sector = std::max(next_sector, end_sector);
  }
  tally.add(sectors, (bytes + 31) / 32, sectors);
}

// Shared memory: 32 banks, each hands out or takes one 4-byte word at a time; lanes at the same word share it (CUDA C++
// Programming Guide, "Shared Memory" of compute capability 5.x, which the later ones refer to). A wavefront is what is served
// at once (Nsight Compute, "Wavefront"), so words of one bank need as many as there are. A warp has more than 32 words of
// wider types: 8-byte accesses are served half-warp by half-warp (the guide says so of 2.x), 16-byte ones by quarters; so is
// ldmatrix, whose matrices are 8 rows of 16 bytes each, and by our assumption cp.async, of which no document speaks. That
// quarters that read the same words may be served together is not documented either, and not counted. Ideal: a wavefront a
// group.
void count_wavefronts(const Request& r, Tally& tally) {
  const int group = r.bytes <= 4 ? 32 : r.bytes <= 8 ? 16 : 8;
  int64_t wavefronts = 0, groups = 0, worst = 0;
  for (int first = 0; first < 32; first += group) {
    std::array<uintptr_t, 64> words;
    int n = 0;
    for (int lane = first; lane < first + group; ++lane)
      if (r.lanes >> lane & 1)
        for (uintptr_t word = r.address[lane] / 4; word <= (r.address[lane] + r.bytes - 1) / 4; ++word)
          words[n++] = word;
    if (n == 0) continue;
    std::sort(words.begin(), words.begin() + n);
    n = int(std::unique(words.begin(), words.begin() + n) - words.begin());
    std::array<int64_t, 32> in_bank{};
    for (int i = 0; i < n; ++i) ++in_bank[words[i] % 32];
    const int64_t most = *std::max_element(in_bank.begin(), in_bank.end());
    wavefronts += most, worst = std::max(worst, most);
    ++groups;
  }
  tally.add(wavefronts, groups, worst);
}

// Atomics on one address are done one after another.
void count_lanes_on_one_address(const Request& r, Tally& tally) {
  std::map<uintptr_t, int64_t> lanes;
  int64_t most = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (r.lanes >> lane & 1) most = std::max(most, ++lanes[r.address[lane]]);
  tally.add(most, 1, most);
}

void count(const Instruction& instruction, const Request& request) {
  Tally& tally = launch->tallies[instruction];
  ++tally.requests;
  tally.bytes += int64_t(request.bytes) * __builtin_popcount(request.lanes);
  switch (instruction.kind) {
    case global_load:
    case global_store:
      return count_sectors(request, tally);
    case shared_load:
    case shared_store:
      return count_wavefronts(request, tally);
    case global_atomic:
    case shared_atomic:
      return count_lanes_on_one_address(request, tally);
  }
}

// ---- from accesses to requests ------------------------------------------------------------------------------------

void finish(Warp& warp) {
  for (auto& [instruction, waiting] : warp) {
    for (const Request& request : waiting.requests)
      if (request.lanes) count(instruction, request);
    waiting = {};
  }
}

void note(const Instruction& instruction, uintptr_t address, size_t bytes) {
  const Block& block = *self->block;
  Waiting& waiting = blocks[&block][size_t(self->warp)][instruction];
  const size_t n = size_t(waiting.executed[size_t(self->lane)]++ - waiting.gone);
  if (n >= waiting.requests.size()) waiting.requests.resize(n + 1);
  Request& request = waiting.requests[n];
  request.lanes |= 1u << self->lane;
  request.bytes = bytes;
  request.address[size_t(self->lane)] = address;
  const int threads = int(block_dim.x * block_dim.y * block_dim.z), lanes = std::min(32, threads - self->warp * 32);
  while (!waiting.requests.empty() && __builtin_popcount(waiting.requests.front().lanes) == lanes) {
    count(instruction, waiting.requests.front());
    waiting.requests.pop_front();
    ++waiting.gone;
  }
}

void touch(const observer::Access& a) {
  const memory::Buffer* const buffer = memory::nearest(a.address);
  const char* const p = static_cast<const char*>(a.address);
  if (!buffer || p + a.bytes > buffer->end) return;  // the race checker tells
  std::vector<unsigned char>& bytes = touched[buffer->begin];
  bytes.resize(size_t(buffer->end - buffer->begin));
  const unsigned char mark = a.atomic ? 3 : a.write ? 2 : 1;
  for (size_t i = 0; i < a.bytes; ++i) bytes[size_t(p - buffer->begin) + i] |= mark;
}

void add_touched() {
  for (const auto& [begin, bytes] : touched)
    for (const unsigned char mark : bytes) launch->read += mark & 1, launch->written += mark >> 1;
  touched.clear();
}

bool equal(const dim3& a, const dim3& b) { return a.x == b.x && a.y == b.y && a.z == b.z; }

}  // namespace

void block_begins(const Block& block) {
  if (block.number > 0) return;
  add_touched();
  const size_t dynamic_bytes = block.shared.dynamic_bytes;
  const auto found = std::find_if(launches.begin(), launches.end(), [&](const Launch& l) {
    return l.kernel == kernel_name && equal(l.grid, grid_dim) && equal(l.block, block_dim) &&
           l.dynamic_bytes == dynamic_bytes;
  });
  launch = found != launches.end() ? &*found
                                   : &launches.emplace_back(Launch{kernel_name, grid_dim, block_dim, dynamic_bytes});
  ++launch->launches;
}

void block_ends(const Block& block) {
  met(block);
  blocks.erase(&block);
  size_t bytes = 0;
  for (const SharedVariable& v : block.shared.variables) bytes += v.key ? v.bytes : 0;
  launch->static_bytes = std::max(launch->static_bytes, bytes);
}

void met(const Block& block, int warp) { finish(blocks[&block][size_t(warp)]); }

void met(const Block& block) {
  for (Warp& warp : blocks[&block]) finish(warp);
}

void accessed(const observer::Access& a, bool shared) {
  const int what = a.atomic ? 2 : a.write ? 1 : 0;
  const Instruction instruction{a.code, Kind(what + (shared ? shared_load : global_load))};
  if (a.asynchronous) asynchronous.insert(instruction);
  if (!a.asynchronous && asynchronous.count(instruction)) return;  // it lands; counted where it began
  if (!shared) touch(a);
  if (a.by_unit) {  // one request, however wide; how it goes about shared memory is its own affair
    Request request{1, a.bytes, {reinterpret_cast<uintptr_t>(a.address)}};
    if (!shared) count(instruction, request);
    return;
  }
  for (size_t done = 0; done < a.bytes; done += 16)
    note(instruction, reinterpret_cast<uintptr_t>(a.address) + done, std::min<size_t>(a.bytes - done, 16));
}

void multiplied(int64_t flops) { launch->flops += flops; }

}  // namespace minigpt::emulator::counters

// ---- for Python ---------------------------------------------------------------------------------------------------

// Begins, with nothing counted, or ends.
VISIBLE void minigpt_emulator_count(int on) {
  using namespace minigpt::emulator::counters;
  if (on) {
    launches.clear();
    touched.clear();
    asynchronous.clear();
    launch = nullptr;
  }
  counting = on;
}

// What was counted, a line each, in this order and with tabs between:
//   launch  kernel  grid x y z  block x y z  dynamic and static bytes of shared memory  launches  distinct bytes of global
//           memory read and written, each launch for itself  FLOPs of tensor cores
//   line    of the launch above: address in the library  kind  requests  bytes asked for  units  ideal  worst
VISIBLE const char* minigpt_emulator_counts() {
  using namespace minigpt::emulator::counters;
  add_touched();
  static std::string kept;
  std::ostringstream text;
  const auto tell = [&](const auto&... values) {
    const char* before = "";
    ((text << before << values, before = "\t"), ...);
    text << '\n';
  };
  for (const Launch& l : launches) {
    tell("launch", l.kernel, l.grid.x, l.grid.y, l.grid.z, l.block.x, l.block.y, l.block.z, l.dynamic_bytes,
         l.static_bytes, l.launches, l.read, l.written, l.flops);
    for (const auto& [at, t] : l.tallies) {
      Dl_info library{};
      dladdr(at.code, &library);
      tell("line", static_cast<const char*>(at.code) - static_cast<const char*>(library.dli_fbase) - 1, kNames[at.kind],
           t.requests, t.bytes, t.units, t.ideal, t.worst);
    }
  }
  return (kept = text.str()).c_str();
}
