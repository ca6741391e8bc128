// What Python sets and asks, through ctypes.
#include <exception>

#include "emulator.h"
#include "memory.h"

#define VISIBLE extern "C" __attribute__((visibility("default")))

namespace {

using minigpt::emulator::last_failure;
std::string kept;  // what the last answer points to

}  // namespace

VISIBLE void minigpt_emulator_seed(uint64_t seed) { minigpt::emulator::settings.seed = seed; }

// The synchronisation at this line does nothing from now on; an empty file ends that.
VISIBLE void minigpt_emulator_remove(const char* file, int line) {
  static std::string name;
  name = file;
  minigpt::emulator::settings.removed = {name.empty() ? nullptr : name.c_str(), line};
}

// launches, blocks, switches, meetings since the library was loaded
VISIBLE void minigpt_emulator_statistics(int64_t* four) {
  const auto& s = minigpt::emulator::statistics;
  four[0] = s.launches, four[1] = s.blocks, four[2] = s.switches, four[3] = s.meetings;
}

// The last failure: numbers (line, block x y z, thread x y z); what, kernel and file, each ended by a NUL.
VISIBLE const char* minigpt_emulator_failure(int* seven) {
  const auto& f = last_failure;
  const int numbers[] = {f.line,          int(f.block.x),  int(f.block.y), int(f.block.z),
                         int(f.thread.x), int(f.thread.y), int(f.thread.z)};
  for (int i = 0; i < 7; ++i) seven[i] = numbers[i];
  kept = f.what + '\0' + f.kernel + '\0' + f.file + '\0';
  return kept.c_str();
}

// For kernels without torch: a tensor's place on the device until the next call has ended; and that call, of a launcher that
// takes up to 12 pointers and integers. Both return null where all went well, or the error.
VISIBLE const char* minigpt_emulator_copy_in(void* host, int dims, const int64_t* sizes, const int64_t* strides,
                                             int element_bytes, int writable, void** device) {
  try {
    *device = minigpt::emulator::memory::copy_in(
        host, {{sizes, sizes + dims}, {strides, strides + dims}, size_t(element_bytes)}, writable);
    return nullptr;
  } catch (const std::exception& error) {
    return (kept = error.what()).c_str();
  }
}

VISIBLE const char* minigpt_emulator_call(void* launcher, const int64_t* a) {
  using L = int64_t;
  const auto f = reinterpret_cast<void (*)(L, L, L, L, L, L, L, L, L, L, L, L)>(launcher);
  try {
    minigpt::emulator::memory::Call call;
    f(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]);
    call.succeeded();
    return nullptr;
  } catch (const std::exception& error) {
    return (kept = error.what()).c_str();
  }
}
