// What a GPU's memory system would be asked for, counted while a kernel runs in the checking build; off until Python asks
// for it. One instruction of one warp is one request. Here a warp's lanes run one after another, so that its requests must
// be put together again: the n-th time that each lane comes to an instruction, counted since all lanes of the warp last
// met, is one request. For converged code that is exact. Where lanes left a loop at different rounds, the later rounds are
// requests of those that stayed, as on a GPU; where lanes took an instruction in different rounds of a loop (an `if` that
// is true for some of them), rounds are taken together that a GPU runs apart: the count of requests is then too low.
//
// The compiler of the emulator is not nvcc: it may keep a value where nvcc loads it again, or the reverse. What goes
// through load_vec, store_vec, cp.async, ldmatrix and atomics is as written. Wider than 16 bytes is several accesses.
#pragma once
#include "observer.h"

namespace minigpt::emulator::counters {

extern bool counting;

void block_begins(const Block& block);
void block_ends(const Block& block);
void accessed(const observer::Access& access, bool shared);
void met(const Block& block, int warp);  // all lanes of the warp are at one place
void met(const Block& block);            // all of its warps are
void multiplied(int64_t flops);          // by the tensor cores

}  // namespace minigpt::emulator::counters
