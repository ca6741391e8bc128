// What the parts of the scheduler have in common.
#pragma once
#include "block.h"

namespace minigpt::emulator {

extern std::vector<Block*> running;           // all of a cooperative launch, else one
extern std::vector<Thread*> at_grid_barrier;  // waiting there

bool in_order();  // the schedule: seed 0

void make_ready(Thread* thread);
void give_way();  // another thread runs; returns when it is the calling thread's turn again
void wait_here(const char* what, Where where);

void left(Thread& thread);  // it has returned: nobody waits for it any more

}  // namespace minigpt::emulator
