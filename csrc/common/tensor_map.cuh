// What TMA is told of a tensor: made on the host, handed to a kernel as `const __grid_constant__ TensorMap`.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "device.cuh"

#ifndef MINIGPT_CUDA_EMULATOR
#include <cuda.h>
#endif

namespace minigpt {

// How TMA and wgmma permute the 16-byte pieces of shared memory, so that neither rows nor columns of a tile meet in one
// bank. With `none` out, bits 4 ... of an address are XORed with the same number of bits from bit 7 on: 1, 2, 3 of them.
enum class Swizzle { none, bytes32, bytes64, bytes128 };

constexpr int swizzle_bytes(Swizzle swizzle) { return swizzle == Swizzle::none ? 16 : 16 << static_cast<int>(swizzle); }

#ifdef MINIGPT_CUDA_EMULATOR
struct alignas(64) TensorMap {
  const char* base;
  int64_t rows, cols, row_bytes;
  int element_bytes, box_rows, box_cols;
  Swizzle swizzle;
};

template <class T>
TensorMap encode_tensor_map(const T* base, int64_t rows, int64_t cols, int64_t row_bytes, int box_rows, int box_cols,
                            Swizzle swizzle) {
  return {reinterpret_cast<const char*>(base), rows, cols, row_bytes, sizeof(T), box_rows, box_cols, swizzle};
}
#else
using TensorMap = CUtensorMap;

// libcuda is not linked: the one function that is needed of it is found by its name.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess || !function)
    throw std::runtime_error(std::string("the driver has no cuTensorMapEncodeTiled (CUDA 12.0 or later is needed): ") +
                             (error != cudaSuccess ? cudaGetErrorString(error) : "not found in it"));
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

template <class T>
constexpr CUtensorMapDataType tensor_map_type() {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  if constexpr (std::is_same_v<T, __half>) return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

template <class T>
TensorMap encode_tensor_map(const T* base, int64_t rows, int64_t cols, int64_t row_bytes, int box_rows, int box_cols,
                            Swizzle swizzle) {
  static const auto encode = tensor_map_encoder();
  TensorMap map{};
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_cols), static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  const CUresult result = encode(&map, tensor_map_type<T>(), 2, const_cast<T*>(base), sizes, strides, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, static_cast<CUtensorMapSwizzle>(swizzle),
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled refuses the tensor map: CUresult " + std::to_string(result));
  return map;
}
#endif

// The map of a tensor [rows, cols] of T (float, __half or __nv_bfloat16), its rows `row_stride` elements apart, moved in boxes
// of box_rows x box_cols. In shared memory a box is dense, its start aligned to 128 bytes, swizzled: to 8 of its rows.
// Throws where TMA does not take it.
template <class T>
TensorMap make_tensor_map_2d(const T* base, int64_t rows, int64_t cols, int64_t row_stride, int box_rows, int box_cols,
                             Swizzle swizzle) {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  constexpr int64_t element = sizeof(T), most = int64_t(1) << 32;
  const int64_t row_bytes = row_stride * element, box_row_bytes = box_cols * element;
  const auto refuse = [](const std::string& what) { throw std::runtime_error("tensor map: " + what); };
  if (reinterpret_cast<uintptr_t>(base) % 16) refuse("base must be aligned to 16 bytes");
  if (rows < 1 || rows > most || cols < 1 || cols > most)
    refuse("rows and cols must be 1 ... 2^32, got " + std::to_string(rows) + " and " + std::to_string(cols));
  if (row_stride < cols || row_bytes % 16 || row_bytes >= int64_t(1) << 40)
    refuse("row_stride must be at least cols and a multiple of 16 bytes below 2^40, got " + std::to_string(row_stride) +
           " elements of " + std::to_string(element) + " bytes");
  if (box_rows < 1 || box_rows > 256 || box_cols < 1 || box_cols > 256)
    refuse("box_rows and box_cols must be 1 ... 256, got " + std::to_string(box_rows) + " and " +
           std::to_string(box_cols));
  if (swizzle == Swizzle::none ? box_row_bytes % 16 != 0 : box_row_bytes != swizzle_bytes(swizzle))
    refuse("a row of a box must take " +
           (swizzle == Swizzle::none ? "a multiple of 16" : std::to_string(swizzle_bytes(swizzle))) +
           " bytes with this swizzle, got " + std::to_string(box_row_bytes));
  return encode_tensor_map(base, rows, cols, row_bytes, box_rows, box_cols, swizzle);
}

}  // namespace minigpt
