// One function a weight format: columns [n_begin, n_end) of a product.
#pragma once
#include "matmul_block.h"

namespace minigpt::decoder {

void multiply_fp32(const Product& p, int64_t n_begin, int64_t n_end);
void multiply_bf16(const Product& p, int64_t n_begin, int64_t n_end);
void multiply_int8(const Product& p, int64_t n_begin, int64_t n_end);
void multiply_int4(const Product& p, int64_t n_begin, int64_t n_end);

}  // namespace minigpt::decoder
