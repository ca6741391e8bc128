// Work sharing on the CPU. The declarations are free of torch, so that kernels are; parallel.cpp asks torch's thread pool.
#pragma once
#include <cstdint>

namespace minigpt {

// Calls call(context, i) once for each i in [0, n), on all of torch's threads; a thread that is free takes the next i.
// The call must not throw: an exception in a worker would lose its message.
void run_tasks(int64_t n, void (*call)(const void* context, int64_t i), const void* context);

template <class F>
void parallel_tasks(int64_t n, const F& task) {
  run_tasks(n, [](const void* context, int64_t i) { (*static_cast<const F*>(context))(i); }, &task);
}

// The same, on the calling thread alone where all of the work is too little (under some 20 us) to wake others for.
template <class F>
void parallel_tasks(int64_t n, bool worth_waking, const F& task) {
  if (worth_waking) return parallel_tasks(n, task);
  for (int64_t i = 0; i < n; ++i) task(i);
}

// Cuts [0, n) into ranges of at most `chunk` and calls task(begin, end) for each. The cuts depend on n and chunk alone,
// never on the number of threads, so that what is added up range by range is the same on every machine.
template <class F>
void parallel_ranges(int64_t n, int64_t chunk, const F& task) {
  parallel_tasks((n + chunk - 1) / chunk, [&](int64_t i) {
    const int64_t begin = i * chunk;
    task(begin, begin + chunk < n ? begin + chunk : n);
  });
}

}  // namespace minigpt
