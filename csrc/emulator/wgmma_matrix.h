// A matrix in shared memory as wgmma's descriptors tell of it; common/hopper.cuh has the formulas.
#pragma once
#include <cstdint>
#include <string>

#include "../common/hopper.cuh"
#include "hopper_block.h"

namespace minigpt::emulator {

struct WgmmaMatrix {
  WgmmaMatrix(uint64_t descriptor, Major major, const char* name, Where where)
      : major(major),
        swizzle(static_cast<Swizzle>((4 - (descriptor >> 62)) % 4)),
        start(field(descriptor)),
        leading(field(descriptor >> 16)),
        stride(field(descriptor >> 32)) {
    if (descriptor & ~uint64_t(0xc0003fff3fff3fff))
      fail(std::string("wgmma: the descriptor of ") + name + " has bits set that mean nothing here", where);
    const uint32_t tile_row = uint32_t(swizzle_bytes(swizzle));
    if (swizzle != Swizzle::none && start % (8 * tile_row) >= tile_row)
      fail(std::string("wgmma: the swizzled tile of ") + name + " begins " + std::to_string(start % (8 * tile_row)) +
               " bytes past a multiple of " + std::to_string(8 * tile_row),
           where);
  }

  // Where 8 elements lie: (mn, k), with mn or k a multiple of 8, the one that runs fastest.
  uint32_t piece(int mn, int k) const {
    const uint32_t row = uint32_t(swizzle_bytes(swizzle)), m = uint32_t(mn), kk = uint32_t(k), across = row / 2;
    uint32_t offset = 0;
    if (swizzle == Swizzle::none)
      offset = m / 8 * stride + kk / 8 * leading + (major == Major::k ? m % 8 * 16 : kk % 8 * 16);
    else if (major == Major::k)
      offset = m % 8 * row + m / 8 * stride + 2 * kk;
    else
      offset = 2 * (m % across) + m / across * leading + kk % 8 * row + kk / 8 * stride;
    return swizzled(start + offset, swizzle);
  }

  // f(mn, k, offset) for all pieces of rows first ... first + count of mn.
  template <class F>
  void for_each_piece(int first, int count, const F& f) const {
    if (major == Major::k) {
      for (int mn = first; mn < first + count; ++mn)
        for (int k = 0; k < 16; k += 8) f(mn, k, piece(mn, k));
    } else {
      for (int k = 0; k < 16; ++k)
        for (int mn = first; mn < first + count; mn += 8) f(mn, k, piece(mn, k));
    }
  }

  static uint32_t field(uint64_t bits) { return uint32_t(bits & 0x3fff) << 4; }

  Major major;
  Swizzle swizzle;
  uint32_t start, leading, stride;
};

}  // namespace minigpt::emulator
