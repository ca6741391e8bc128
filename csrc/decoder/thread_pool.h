// The decode engine's own threads. A token runs dozens of short parallel parts, some of a few microseconds, so a barrier
// must cost about one: threads spin for a moment before they sleep.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace minigpt::decoder {

class ThreadPool {
 public:
  // `threads` in all: the one that calls run() is number 0, the others are started here. Throws std::invalid_argument
  // below 1, std::runtime_error where the system does not give so many.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // task(thread) on every thread; returns when all have returned. The task must not throw. One run() at a time.
  template <class F>
  void run(const F& task) {
    run([](const void* context, int thread) { (*static_cast<const F*>(context))(thread); }, &task);
  }

  // From inside a task, called by all threads alike: none goes on before all have come, and each then sees what the
  // others wrote before.
  void barrier();

 private:
  using Call = void (*)(const void* context, int thread);
  using Word = std::atomic<uint32_t>;

  void run(Call call, const void* context);
  void work(int thread);
  void join();
  void wait_while(Word& word, uint32_t value, std::chrono::microseconds spin);
  void change(Word& word);

  const int threads_;
  std::chrono::microseconds barrier_spin_, idle_spin_;
  Call call_ = nullptr;
  const void* context_ = nullptr;
  bool stop_ = false;
  // Each on a cache line of its own, so that those who arrive do not disturb those who wait.
  alignas(64) Word started_{0};     // counts runs
  alignas(64) Word passed_{0};      // counts barriers
  alignas(64) Word arrived_{0};     // threads that have come to the next barrier
  alignas(64) Word sleepers_{0};    // threads in the kernel's hands
  std::atomic<int> waker_cpu_{-1};  // where the last one ran that woke others
  std::vector<std::thread> workers_;
};

}  // namespace minigpt::decoder
