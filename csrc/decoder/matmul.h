// y (M, N) = x (M, K) W^T + bias over packed weights, a share of N a thread. M = 1 ... 8 (a token of some sequences) runs at
// memory speed, a greater M (a prompt) as a blocked GEMM.
//
// What is multiplied: fp32 weights by x as it is; bf16 weights by x rounded to bf16; int8 and int4 weights by x rounded to
// int8 with a scale for every 32 of a row, max |x| / 127. Products of a group are summed exactly, all else in float.
// Every sum is taken in the order of K, so that a row's result depends neither on the number of threads nor on M.
#pragma once
#include "packed_matrix.h"

namespace minigpt::decoder {

// x as multiply() takes it, prepared once for all threads: input_bytes() of them, aligned to 64. Rows [row_begin, row_end)
// may be prepared by different threads. M rows of x lie x_stride floats apart.
int64_t input_bytes(WeightFormat format, int64_t M, int64_t K);
void prepare_input(WeightFormat format, const float* x, int64_t x_stride, int64_t K, int64_t row_begin, int64_t row_end,
                   std::byte* out);

// Columns [n_begin, n_end) of y, rows of which lie y_stride floats apart; n_begin is a share_begin(). bias (N) may be null.
void multiply(const PackedMatrix& matrix, const std::byte* input, int64_t M, const float* bias, float* y,
              int64_t y_stride, int64_t n_begin, int64_t n_end);

// Where thread `thread` of `threads` begins in N, at a whole panel; N for thread == threads.
int64_t share_begin(const PackedMatrix& matrix, int thread, int threads);

}  // namespace minigpt::decoder
