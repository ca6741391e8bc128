// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a counter and a key give four
// random words, so a dropout mask is a function of seed and position and needs no state. The same code serves C++ and CUDA.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define MINIGPT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MINIGPT_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace minigpt {

struct PhiloxWords {
  uint32_t word[4];
};

MINIGPT_HOST_DEVICE PhiloxWords philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c0, b = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t n0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0, n2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c0 = n0, c1 = static_cast<uint32_t>(b), c2 = n2, c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Attention's dropout: query i of head `bh` (= b * H + h) drops key j where word j % 4 of the counter (j / 4, i, bh, 0) is
// below `threshold` = dropout_p * 2^32. One call serves four neighbouring keys; the mask does not depend on T, S or tiling.
MINIGPT_HOST_DEVICE PhiloxWords attention_dropout_words(uint64_t seed, int64_t bh, int64_t i, int64_t j) {
  return philox(seed, static_cast<uint32_t>(j / 4), static_cast<uint32_t>(i), static_cast<uint32_t>(bh), 0);
}

// Of the op dropout: element i is dropped where word i % 4 of the counter (i / 4, of 64 bits, 0, kDropoutStream) is below
// `threshold` = p * 2^32. The last word keeps its masks apart from attention's under the same seed.
constexpr uint32_t kDropoutStream = 1;

MINIGPT_HOST_DEVICE PhiloxWords dropout_words(uint64_t seed, int64_t i) {
  const uint64_t group = static_cast<uint64_t>(i / 4);
  return philox(seed, static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), 0, kDropoutStream);
}

}  // namespace minigpt
