// memory_check [ROOM...]: runs the rooms' checks, all of them by default, at the level that MINIGPT_SIMD names.
// memory_check --fault NAME: does wrong on purpose; a checker that lets it pass checks nothing.
#include <cstring>

#include "common/parallel.h"
#include "common/scratch.h"
#include "gelu/gelu.h"
#include "memory_check.h"

// What ASan would take from ASAN_OPTIONS: all of a fresh block is filled, with bytes that are NaN in every type.
extern "C" const char* __asan_default_options() { return "max_malloc_fill_size=1073741824:malloc_fill_byte=255"; }

namespace minigpt {

// In place of common/parallel.cpp, which asks torch's threads: tasks one after the other, the last first.
Alone::Alone() : before_(true) {}
Alone::~Alone() {}
int64_t threads() { return 2; }
void run_tasks(int64_t n, bool, void (*call)(const void* context, int64_t i), const void* context) {
  while (n-- > 0) call(context, n);
}

}  // namespace minigpt

namespace memory_check {
namespace {

constexpr struct {
  const char* name;
  void (*check)();
} kRooms[] = {
    {"attention", check_attention},
    {"decode_attention", check_decode_attention},
    {"layer_norm", check_layer_norm},
    {"rms_norm", check_rms_norm},
    {"gelu", check_gelu},
    {"swiglu", check_swiglu},
    {"relu_squared", check_relu_squared},
    {"dropout", check_dropout},
    {"rope", check_rope},
    {"cross_entropy", check_cross_entropy},
    {"packed_matrix", check_packed_matrix},
    {"decoder", check_decoder},
};

void commit(const std::string& fault) {
  constexpr int64_t n = 64;  // whole vectors: it is their loads and stores that must be seen
  const bool read = fault == "read", write = fault == "write";
  if (read || write) {  // a block that is one element short
    for (DType type : {DType::f32, DType::bf16}) {
      const Block x = Block::filled(type, n - read, 1), y(type, n - write);
      gelu_forward_cpu({.n = n, .dtype = type, .tanh = true, .x = x, .y = y});
    }
  } else if (fault == "scratch") {
    Scratch scratch(Scratch::bytes_for<float>(n));
    float* const taken = scratch.take<float>(n);
    for (int64_t i = 0; i <= n; ++i) taken[i] = 1;
    std::printf("%g\n", taken[n]);
  } else if (fault == "unwritten") {
    const Block x = Block::filled(DType::f32, n, 1), y(DType::f32, n);
    gelu_forward_cpu({.n = n - 1, .dtype = DType::f32, .tanh = true, .x = x, .y = y});
    y.check("y");
  } else {
    fail("faults are read, write, scratch and unwritten, not " + fault);
  }
}

}  // namespace
}  // namespace memory_check

int main(int argc, char** argv) {
  using namespace memory_check;
  std::setvbuf(stdout, nullptr, _IOLBF, 4096);
  if (argc == 3 && !std::strcmp(argv[1], "--fault")) {
    commit(argv[2]);
    return 0;
  }
  for (int i = 1; i < argc; ++i) {
    bool known = false;
    for (const auto& room : kRooms) known |= !std::strcmp(room.name, argv[i]);
    if (!known) fail(std::string("no room: ") + argv[i]);
  }
  for (const auto& room : kRooms) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted |= !std::strcmp(room.name, argv[i]);
    if (wanted) room.check();
  }
  std::printf("clean at %s\n", minigpt::simd::level_name());
}
