// Work sharing on the CPU. The declarations are free of torch, so that kernels are; parallel.cpp asks torch's thread pool.
#pragma once
#include <cstdint>

namespace minigpt {

// Calls call(context, i) once for each i in [0, n), on all of torch's threads. `in_runs`: each thread takes one run of
// consecutive i, the same one every time, and finds what it wrote before in its own cache; otherwise a thread that is free
// takes the next i, for tasks of unequal length. The call must not throw: an exception in a worker would lose its message.
void run_tasks(int64_t n, bool in_runs, void (*call)(const void* context, int64_t i), const void* context);

template <class F>
void run_tasks(int64_t n, bool in_runs, const F& task) {
  run_tasks(n, in_runs, [](const void* context, int64_t i) { (*static_cast<const F*>(context))(i); }, &task);
}

// While one lives, run_tasks on its thread does everything there: for callers who have threads of their own and give each
// a part of the rows.
class Alone {
 public:
  Alone();
  ~Alone();
  Alone(const Alone&) = delete;
  Alone& operator=(const Alone&) = delete;

 private:
  bool before_;
};

// How many threads run_tasks takes. For cuts that do not show in the results.
int64_t threads();

// Tasks of unequal length.
template <class F>
void parallel_tasks(int64_t n, const F& task) {
  run_tasks(n, /*in_runs=*/false, task);
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
  run_tasks((n + chunk - 1) / chunk, /*in_runs=*/true, [&](int64_t i) {
    const int64_t begin = i * chunk;
    task(begin, begin + chunk < n ? begin + chunk : n);
  });
}

}  // namespace minigpt
