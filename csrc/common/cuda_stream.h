// CUDA's stream type without CUDA's headers, so that a room's parameter header serves every build.
#pragma once

struct CUstream_st;

namespace minigpt {

using CudaStream = CUstream_st*;  // the same type as cudaStream_t

}  // namespace minigpt
