#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "block.h"
#include "emulator.h"
#include "observer.h"
#include "places.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

namespace minigpt::emulator {
namespace {

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
size_t whole_pages(size_t bytes) { return (bytes + page() - 1) / page() * page(); }

bool is_poison(const char* begin, const char* end) {
  return std::all_of(begin, end, [](char c) { return static_cast<unsigned char>(c) == 0xff; });
}

char* reserve(size_t bytes, int access) {
  void* memory = mmap(nullptr, bytes, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("CUDA emulator: no address space for its memory");
  return static_cast<char*>(memory);
}

}  // namespace

void wide_access(const void* p, size_t bytes, size_t alignment, bool write, const void* code) {
  if (!code) code = __builtin_return_address(0);
  observer::accessed({p, bytes, write, false, false, code});
  if (reinterpret_cast<uintptr_t>(p) % alignment)
    fail(std::string("misaligned ") + (write ? "store" : "load") + " of " + std::to_string(bytes) +
             " bytes: the address is " + std::to_string(reinterpret_cast<uintptr_t>(p) % alignment) +
             " bytes past a multiple of " + std::to_string(alignment) + ", at " + place_of(code),
         where_is(code));
}

// ---- shared memory ------------------------------------------------------------------------------------------------

SharedMemory::SharedMemory() {
  const size_t guard = page();
  char* const all = reserve(kCapacity + 2 * guard, PROT_READ | PROT_WRITE);
  mprotect(all, guard, PROT_NONE);
  mprotect(all + guard + kCapacity, guard, PROT_NONE);
  memory = all + guard;
}

SharedMemory::~SharedMemory() { munmap(memory - page(), kCapacity + 2 * page()); }

void SharedMemory::reset(size_t bytes) {
  dynamic_bytes = bytes;
  variables = {{nullptr, memory, bytes}};
  poison(memory, std::max(used, bytes + kGap));
  used = bytes + kGap;
}

void* SharedMemory::variable(const void* key, size_t bytes, size_t alignment) {
  for (const SharedVariable& v : variables)
    if (v.key == key) return v.memory;
  alignment = std::max<size_t>(alignment, 16);
  const size_t at = (used + alignment - 1) / alignment * alignment;
  if (at + bytes + kGap > kCapacity) fail("more shared memory than any GPU has");
  poison(memory + used, at + bytes + kGap - used);
  variables.push_back({key, memory + at, bytes});
  used = at + bytes + kGap;
  return memory + at;
}

std::string SharedMemory::written_gap() const {
  for (size_t i = 0; i < variables.size(); ++i) {
    const char* const end = variables[i].memory + variables[i].bytes;
    const char* const next = i + 1 < variables.size() ? variables[i + 1].memory : memory + used;
    if (!is_poison(end, next))
      return "something was written behind the end of " +
             (i ? "a shared variable of " + std::to_string(variables[i].bytes) : std::to_string(dynamic_bytes)) +
             (i ? " bytes" : " bytes of dynamic shared memory");
  }
  return "";
}

// ---- device memory ------------------------------------------------------------------------------------------------

namespace memory {
namespace {

struct Copy {
  Buffer device;
  char *host, *first_page, *behind_pages;
  Layout layout;
};

// Tensors lie in the second half: far before one there is nothing either.
constexpr size_t kReserved = size_t(1) << 36, kFirst = kReserved / 2;
char* reserved = nullptr;
size_t used = kFirst;
std::vector<Copy> copies;  // by address
std::vector<Buffer> buffers;

// Calls f(offset, bytes) for every run of neighbouring elements; the offset is the same on both sides.
template <class F>
void for_each_run(const Layout& layout, const F& f) {
  size_t inner = layout.sizes.size();
  int64_t run = 1;
  while (inner > 0 && (layout.strides[inner - 1] == run || layout.sizes[inner - 1] == 1)) run *= layout.sizes[--inner];
  std::vector<int64_t> at(inner, 0);
  for (;;) {
    int64_t offset = 0;
    for (size_t i = 0; i < inner; ++i) offset += at[i] * layout.strides[i];
    f(size_t(offset) * layout.element_bytes, size_t(run) * layout.element_bytes);
    size_t i = inner;
    while (i > 0 && ++at[i - 1] == layout.sizes[i - 1]) at[--i] = 0;
    if (i == 0) return;
  }
}

}  // namespace

namespace {

void* new_copy(void* host, const Layout& layout, bool writable) {
  int64_t last = 0;
  for (size_t i = 0; i < layout.sizes.size(); ++i) {
    if (layout.sizes[i] == 0) return host;  // nothing is there to be read
    last += (layout.sizes[i] - 1) * layout.strides[i];
  }
  const size_t bytes = size_t(last + 1) * layout.element_bytes;
  if (!reserved) reserved = reserve(kReserved, PROT_NONE);
  // The end lies as close before a forbidden page as the host's alignment (of up to 256 bytes) lets it.
  const size_t room = whole_pages(bytes + 256);
  if (used + room + 2 * page() > kReserved) throw std::runtime_error("CUDA emulator: out of device memory");
  char *const first_page = reserved + used + page(), *const behind = first_page + room;
  if (mprotect(first_page, room, PROT_READ | PROT_WRITE))
    throw std::runtime_error("CUDA emulator: out of device memory");
  const size_t low_bits = reinterpret_cast<uintptr_t>(host) % 256;
  char* begin = behind - bytes;
  begin -= (reinterpret_cast<uintptr_t>(begin) - low_bits) % 256;
  used += room + page();

  poison(first_page, room);
  char* const source = static_cast<char*>(host);
  for_each_run(layout, [&](size_t offset, size_t n) { std::memcpy(begin + offset, source + offset, n); });
  copies.push_back({{begin, begin + bytes, writable}, source, first_page, behind, layout});
  buffers.push_back(copies.back().device);
  return begin;
}

}  // namespace

void* copy_in(void* host, const Layout& layout, bool writable) {
  try {
    return new_copy(host, layout, writable);
  } catch (...) {
    end_call(false);  // the call will not come: what it was handed so far must not be copied back by the next one
    throw;
  }
}

void end_call(bool copy_back) {
  std::string written;
  for (const Copy& c : copies) {
    if (copy_back) {
      if (!is_poison(c.first_page, c.device.begin) || !is_poison(c.device.end, c.behind_pages))
        written = "a kernel wrote beside a tensor of " + std::to_string(c.device.end - c.device.begin) + " bytes";
      if (c.device.writable)
        for_each_run(c.layout, [&](size_t at, size_t n) { std::memcpy(c.host + at, c.device.begin + at, n); });
    }
    madvise(c.first_page, size_t(c.behind_pages - c.first_page), MADV_DONTNEED);
    mprotect(c.first_page, size_t(c.behind_pages - c.first_page), PROT_NONE);
  }
  copies.clear();
  buffers.clear();
  used = kFirst;
  if (!written.empty()) fail(written);
}

bool is_device(const void* address) {
  const char* const p = static_cast<const char*>(address);
  return reserved && p >= reserved && p < reserved + kReserved;
}

const Buffer* nearest(const void* address) {
  const char* const p = static_cast<const char*>(address);
  auto after = std::upper_bound(buffers.begin(), buffers.end(), p,
                                [](const char* q, const Buffer& buffer) { return q < buffer.begin; });
  return after == buffers.begin() ? nullptr : &*std::prev(after);
}

std::string describe(const void* address) {
  if (!address) return "a null pointer";
  if (!is_device(address)) return "not an address of a tensor";
  const char* const p = static_cast<const char*>(address);
  const Buffer* const below = nearest(p);
  if (buffers.empty()) return "memory of a tensor of an earlier call";
  const Buffer* const above = below ? below + 1 : buffers.data();
  const bool has_above = above < buffers.data() + buffers.size();
  if (below && (!has_above || p - below->end < above->begin - p))
    return std::to_string(p - below->end) + " bytes behind the end of a tensor of " +
           std::to_string(below->end - below->begin) + " bytes";
  return std::to_string(above->begin - p) + " bytes before a tensor of " + std::to_string(above->end - above->begin) +
         " bytes";
}

}  // namespace memory
}  // namespace minigpt::emulator
