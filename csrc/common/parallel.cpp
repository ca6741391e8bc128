#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

namespace minigpt {
namespace {

thread_local bool alone = false;

}  // namespace

Alone::Alone() : before_(alone) { alone = true; }
Alone::~Alone() { alone = before_; }

int64_t threads() { return alone ? 1 : torch::stable::get_num_threads(); }

void run_tasks(int64_t n, bool in_runs, void (*call)(const void* context, int64_t i), const void* context) {
  if (n <= 0) return;
  if (alone) {
    for (int64_t i = 0; i < n; ++i) call(context, i);
    return;
  }
  if (in_runs) {
    torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) call(context, i);
    });
    return;
  }
  const int64_t workers = std::min<int64_t>(n, threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) call(context, i);
  });
}

}  // namespace minigpt
