// A conformance case: a small kernel that uses one wrapper of csrc/common, on inputs that Python makes. The same source is
// compiled by nvcc, to record what a GPU answers, and with the emulator, whose answer must be the same.
#pragma once
#include <cstdint>
#include <exception>
#include <string>

#include "common/device.cuh"

struct Arguments {  // pointers to device memory; what they hold, and what p means, is up to the case
  const void *a, *b, *c;
  void* out;
  int64_t p[4];
};

struct Case {
  const char* name;
  void (*run)(const Arguments&);
};

template <class T>
const T* as(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
T* as(void* p) {
  return static_cast<T*>(p);
}

#ifdef MINIGPT_CUDA_EMULATOR
// Runs case `index`; the emulator's library turns exceptions into errors.
#define ENTRY(file)                                                                                         \
  extern "C" void conformance_##file(int64_t index, const void* a, const void* b, const void* c, void* out, \
                                     int64_t p0, int64_t p1, int64_t p2, int64_t p3) {                      \
    cases[index].run({a, b, c, out, {p0, p1, p2, p3}});                                                     \
  }
#else
// Runs case `index` to its end. Returns null, or what went wrong.
#define ENTRY(file)                                                                                                \
  extern "C" const char* conformance_##file(int64_t index, const void* a, const void* b, const void* c, void* out, \
                                            int64_t p0, int64_t p1, int64_t p2, int64_t p3) {                      \
    static std::string error;                                                                                      \
    try {                                                                                                          \
      cases[index].run({a, b, c, out, {p0, p1, p2, p3}});                                                          \
      minigpt::check_cuda(cudaDeviceSynchronize(), cases[index].name);                                             \
      return nullptr;                                                                                              \
    } catch (const std::exception& e) {                                                                            \
      error = e.what();                                                                                            \
      return error.c_str();                                                                                        \
    }                                                                                                              \
  }
#endif

// Behind the file's table `cases`: its entry points. The name of case `index` is null behind the last.
#define CASES_OF(file)                                              \
  extern "C" const char* conformance_##file##_name(int64_t index) { \
    const int64_t count = sizeof cases / sizeof cases[0];           \
    return index < count ? cases[index].name : nullptr;             \
  }                                                                 \
  ENTRY(file)
