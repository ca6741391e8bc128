// The memory check: every CPU kernel, without torch, on blocks of exactly the bytes that it is promised, so that a checker
// (ASan, valgrind) sees an overrun of one element. Fresh memory holds NaN (ASan fills it) or counts as unwritten
// (valgrind), so that a number that was read before it was written, or never written, shows in the results.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "common/dispatch.h"
#include "common/dtype.h"
#include "common/simd.h"

namespace memory_check {

using namespace minigpt;

inline constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16, DType::f64};

struct Types {
  DType x, other;
};
// What takes weights or a residual beside x: the same type, or f32 beside 16 bits.
inline constexpr Types kPairs[] = {{DType::f32, DType::f32}, {DType::bf16, DType::bf16}, {DType::f16, DType::f16},
                                   {DType::f64, DType::f64}, {DType::bf16, DType::f32},  {DType::f16, DType::f32}};

// What a cache may hold: numbers of a type, or int8 values that are made of them, with scales.
struct CacheType {
  DType x;
  bool int8;
};
inline constexpr CacheType kCaches[] = {{DType::f32, false}, {DType::bf16, false}, {DType::f16, false},
                                        {DType::f64, false}, {DType::f32, true},   {DType::bf16, true},
                                        {DType::f16, true}};

inline int64_t size_of(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2; }
inline DType accumulation(DType type) { return type == DType::f64 ? DType::f64 : DType::f32; }
inline const char* name_of(DType type) {
  return type == DType::f32 ? "f32" : type == DType::bf16 ? "bf16" : type == DType::f16 ? "f16" : "f64";
}

[[noreturn]] inline void fail(const std::string& what) {
  std::printf("%s\n", what.c_str());
  std::exit(3);
}

// Names the case at hand, so that a report's last line tells which it was.
template <class... Words>
void say(const Words&... words) {
  std::string line;
  const auto add = [&](const auto& word) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(word)>>)
      line += std::to_string(word) + " ";
    else
      line += std::string(word) + " ";
  };
  (add(words), ...);
  std::puts(line.c_str());
}

struct Release {
  void operator()(void* memory) const { std::free(memory); }
};

// n elements in a block of their own. Aligned to no more than malloc's 16 bytes, as a view of a tensor may be.
class Block {
 public:
  Block(DType type, int64_t n) : type_(type), n_(n), memory_(std::malloc(n * size_of(type))) {}
  operator void*() const { return memory_.get(); }

  // Numbers between -1 and 1 that every type holds exactly, different for different seeds.
  static Block filled(DType type, int64_t n, uint32_t seed) {
    Block block(type, n);
    block.each([&](auto* p) {
      using T = std::remove_pointer_t<decltype(p)>;
      seed = seed * 1664525 + 1013904223;
      const accumulate_t<T> value = accumulate_t<T>(int(seed >> 25) - 64) / 64;
      simd::store_part<16>(p, simd::Vector<accumulate_t<T>, 16>{value}, 1);
    });
    return block;
  }

  // A kernel was to write all of it, and numbers.
  void check(const char* name) const {
    int64_t bad = 0;
    each([&](auto* p) { bad += std::isnan(simd::load_one(p)) ? 1 : 0; });
    if (bad) fail(std::string(name) + ": " + std::to_string(bad) + " of " + std::to_string(n_) + " were not written");
  }

 private:
  template <class F>
  void each(const F& f) const {
    dispatch(type_, [&](auto type) {
      auto* p = static_cast<typename decltype(type)::type*>(memory_.get());
      for (int64_t i = 0; i < n_; ++i) f(p + i);
    });
  }

  DType type_;
  int64_t n_;
  std::unique_ptr<void, Release> memory_;
};

// A cache's memory, unwritten: `heads` rows of D numbers of a type, or of int8 values, each row with a scale.
class CacheBlock {
 public:
  CacheBlock(DType type, bool int8, int64_t heads, int64_t D)
      : values_(std::malloc(heads * D * (int8 ? 1 : size_of(type)))),
        scales_(int8 ? std::malloc(4 * heads) : nullptr) {}
  void* values() const { return values_.get(); }
  float* scales() const { return static_cast<float*>(scales_.get()); }  // null unless int8

 private:
  std::unique_ptr<void, Release> values_, scales_;
};

// Integers, or bytes, in a block of their own.
template <class T>
std::unique_ptr<T[]> copy_of(const std::vector<T>& values) {
  std::unique_ptr<T[]> copy(new T[values.size()]);
  std::copy(values.begin(), values.end(), copy.get());
  return copy;
}

// The rooms, each in a file of this folder.
void check_attention();
void check_decode_attention();  // and kv_append, which fills its cache
void check_layer_norm();
void check_rms_norm();
void check_gelu();
void check_swiglu();
void check_relu_squared();
void check_dropout();
void check_rope();
void check_cross_entropy();
void check_packed_matrix();
void check_decoder();

}  // namespace memory_check
