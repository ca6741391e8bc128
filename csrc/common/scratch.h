// Working memory of a CPU task. It belongs to the thread and is kept, so that a task neither allocates nor touches fresh
// pages each time. A task asks once for all it needs.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#ifdef MINIGPT_CHECK_SCRATCH
#include <cstdlib>
#include <vector>
#endif

namespace minigpt {

#ifdef MINIGPT_CHECK_SCRATCH

// As tests/memory wants it: every piece in a block of its own, fresh and of just its size, so that a checker sees where it
// is overrun; and no more pieces than were asked for.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : left_(bytes) {}

  template <class A>
  A* take(size_t n) {
    void* taken = nullptr;
    if (bytes_for<A>(n) > left_ || posix_memalign(&taken, 64, n * sizeof(A))) std::abort();
    left_ -= bytes_for<A>(n);
    pieces_.emplace_back(taken);
    return static_cast<A*>(taken);
  }

  template <class A>
  static constexpr size_t bytes_for(size_t n) {
    return (n * sizeof(A) + 63) / 64 * 64;
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };

  size_t left_;
  std::vector<std::unique_ptr<void, Free>> pieces_;
};

#else

class Scratch {
 public:
  explicit Scratch(size_t bytes) : next_(memory(bytes)) {}

  // n elements, aligned to 64 bytes, uninitialised.
  template <class A>
  A* take(size_t n) {
    A* taken = reinterpret_cast<A*>(next_);
    next_ += bytes_for<A>(n);
    return taken;
  }

  // What take<A>(n) uses up.
  template <class A>
  static constexpr size_t bytes_for(size_t n) {
    return (n * sizeof(A) + 63) / 64 * 64;
  }

 private:
  static char* memory(size_t bytes) {
    thread_local std::unique_ptr<char[]> kept;
    thread_local size_t size = 0;
    if (size < bytes + 64) {
      size = 0;  // should there be no memory, nothing is kept
      kept.reset();
      kept.reset(new char[bytes + 64]);
      size = bytes + 64;
    }
    const uintptr_t address = reinterpret_cast<uintptr_t>(kept.get());
    return kept.get() + (64 - address % 64) % 64;
  }

  char* next_;
};

#endif

}  // namespace minigpt
