#include "thread_pool.h"

#ifdef __linux__
#include <sched.h>
#endif

#include <stdexcept>
#include <string>
#include <system_error>

namespace minigpt::decoder {
namespace {

void pause() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#ifdef __linux__
int this_cpu() { return sched_getcpu(); }

// The kernel likes to wake a thread on the core of the one that wakes it, which goes on working: the two would share that
// core for milliseconds, until the kernel evens out its queues. A thread that may not run there is moved at once.
void leave_cpu(int cpu) {
  cpu_set_t allowed, others;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  others = allowed;
  CPU_CLR(cpu, &others);
  if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0)
    sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
int this_cpu() { return -1; }
void leave_cpu(int) {}
#endif

}  // namespace

ThreadPool::ThreadPool(int threads) : threads_(threads) {
  if (threads < 1) throw std::invalid_argument("threads must be positive, got " + std::to_string(threads));
  // At a barrier the others are working: to sleep and be woken costs some 50 us, so that much is spun away. Between
  // tokens the caller samples and prints. With more threads than cores, who spins keeps another from its work.
  const bool cores_for_all = unsigned(threads) <= std::thread::hardware_concurrency();
  barrier_spin_ = std::chrono::microseconds(cores_for_all ? 100 : 5);
  idle_spin_ = std::chrono::microseconds(cores_for_all ? 200 : 5);
  try {
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
  } catch (const std::system_error& error) {
    const size_t started = 1 + workers_.size();
    join();
    throw std::runtime_error("threads: the system gave " + std::to_string(started) + " of " + std::to_string(threads) +
                             " (" + error.what() + ")");
  }
}

ThreadPool::~ThreadPool() { join(); }

void ThreadPool::join() {
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
  if (const int cpu = waker_cpu_.load(std::memory_order_relaxed); cpu >= 0 && cpu == this_cpu()) leave_cpu(cpu);
}

void ThreadPool::change(Word& word) {
  word.fetch_add(1);
  if (sleepers_.load() == 0) return;
  waker_cpu_.store(this_cpu(), std::memory_order_relaxed);
  word.notify_all();
  std::this_thread::yield();  // to those woken on this core, who then leave it
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
