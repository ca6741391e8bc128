// Device memory. A tensor that a kernel is handed is copied to a place of its own, with pages on either side that nothing
// may touch and with poison between its elements where it is strided; outputs are copied back. So what lies beside a
// tensor is never read or written unnoticed, and a kernel sees the same alignment as the tensor has.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace minigpt::emulator::memory {

struct Layout {
  std::vector<int64_t> sizes, strides;  // strides in elements, not negative
  size_t element_bytes;
};

// Of the current call of an op: until end_call, which frees all of it and copies what is writable back to the host.
void* copy_in(void* host, const Layout& layout, bool writable);
void end_call(bool copy_back);

// The same end, also where a kernel fails.
struct Call {
  ~Call() { end_call(false); }
  void succeeded() { end_call(true); }
};

struct Buffer {
  char *begin, *end;
  bool writable;
};

// The buffer that holds an address, or the nearest one below; null where there is none. Addresses outside device memory
// (parameters, constants) are not device memory.
const Buffer* nearest(const void* address);
bool is_device(const void* address);

// "48 bytes behind the end of a tensor of 400 bytes": for a message.
std::string describe(const void* address);

}  // namespace minigpt::emulator::memory
