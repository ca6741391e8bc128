#include "thread_pool.h"

#include <stdexcept>
#include <string>

namespace minigpt::decoder {
namespace {

void pause() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) : threads_(threads) {
  if (threads < 1) throw std::invalid_argument("threads must be positive, got " + std::to_string(threads));
  // At a barrier the others are working: to sleep and be woken costs some 50 us, so that much is spun away. Between
  // tokens the caller samples and prints. With more threads than cores, who spins keeps another from its work.
  const bool cores_for_all = unsigned(threads) <= std::thread::hardware_concurrency();
  barrier_spin_ = std::chrono::microseconds(cores_for_all ? 100 : 5);
  idle_spin_ = std::chrono::microseconds(cores_for_all ? 200 : 5);
  for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  change(started_);
  for (std::thread& worker : workers_) worker.join();
}

// Returns when `word` is no longer `value`.
void ThreadPool::wait_while(Word& word, uint32_t value, std::chrono::microseconds spin) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + spin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (word.load(std::memory_order_acquire) != value) return;
      pause();
    }
  } while (Clock::now() < end);
  // Either this thread sees the change, or the one that makes it sees a sleeper: both are sequentially consistent.
  sleepers_.fetch_add(1);
  while (word.load() == value) word.wait(value);
  sleepers_.fetch_sub(1);
}

void ThreadPool::change(Word& word) {
  word.fetch_add(1);
  if (sleepers_.load() != 0) word.notify_all();
}

void ThreadPool::run(Call call, const void* context) {
  if (threads_ == 1) return call(context, 0);
  call_ = call;
  context_ = context;
  change(started_);
  call(context, 0);
  barrier();
}

void ThreadPool::barrier() {
  if (threads_ == 1) return;
  const uint32_t round = passed_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == uint32_t(threads_)) {
    arrived_.store(0, std::memory_order_relaxed);
    change(passed_);
  } else {
    wait_while(passed_, round, barrier_spin_);
  }
}

void ThreadPool::work(int thread) {
  for (uint32_t seen = 0;; ++seen) {
    wait_while(started_, seen, idle_spin_);
    if (stop_) return;
    call_(context_, thread);
    barrier();
  }
}

}  // namespace minigpt::decoder
