#include "simd.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace minigpt::simd {
namespace {

constexpr const char* names[] = {"portable", "avx2", "avx2_vnni", "avx512", "avx512_bf16"};
constexpr Level levels[] = {Level::portable, Level::avx2, Level::avx2_vnni, Level::avx512, Level::avx512_bf16};

Level choose() {
  const char* wanted = std::getenv("MINIGPT_SIMD");
  if (wanted && *wanted) {
    std::string allowed;
    for (Level level : levels) {
      allowed += (allowed.empty() ? "" : ", ") + std::string(names[int(level)]);
      if (std::string(wanted) != names[int(level)]) continue;
      if (level_supported(level)) return level;
      throw std::runtime_error("MINIGPT_SIMD=" + std::string(wanted) + ": this CPU does not have it");
    }
    throw std::runtime_error("MINIGPT_SIMD=" + std::string(wanted) + ": allowed are " + allowed);
  }
  Level best = Level::portable;
  for (Level level : levels)
    if (level_supported(level)) best = level;
  return best;
}

}  // namespace

bool level_supported(Level wanted) {
#ifdef __x86_64__
#define HAS(feature) (__builtin_cpu_supports(feature) != 0)
  // The marks of x86-64-v3 and v4 (not every compiler knows those names here); a CPU that has these has the rest.
  const bool avx2 = HAS("avx2") && HAS("fma") && HAS("bmi") && HAS("bmi2");
  if (wanted == Level::avx2) return avx2;
  const bool avx512 =
      avx2 && HAS("avx512f") && HAS("avx512bw") && HAS("avx512cd") && HAS("avx512dq") && HAS("avx512vl");
  if (wanted == Level::avx512) return avx512;
#ifdef MINIGPT_DOTS
  if (wanted == Level::avx2_vnni) return avx2 && HAS("avxvnni");
  if (wanted == Level::avx512_bf16) return avx512 && HAS("avx512vnni") && HAS("avx512bf16");
#endif
#undef HAS
#endif
  return wanted == Level::portable;
}

Level level() {
  static const Level chosen = choose();
  return chosen;
}

const char* level_name() { return names[int(level())]; }

}  // namespace minigpt::simd
