// Shared memory of the block that runs, with every access checked.
//
//   bounds        an index outside the array that was taken
//   races         two threads touch a word, one of them writing, with no barrier between them: __syncthreads() for any
//                 two threads, __syncwarp() for two of one warp. Found whatever the schedule.
//   no value      a word is read that no thread of this block has written
//
//   copies        a word is touched between the start of an asynchronous copy to it and the wait that ends it
//
// Words are four bytes: narrower accesses do not compile.

#pragma once

#include <cstddef>
#include <cstdint>

#include "interpreter.h"

namespace vqdm::simt {

// Of the block that runs: its memory, zero-sized arrays allowed. `offset` is counted in bytes from its start.
void read_shared(int64_t offset, void* value, size_t bytes, const Site& site);
void write_shared(int64_t offset, const void* value, size_t bytes, const Site& site);
void check_shared_size(int64_t bytes, const Site& site);

// ---- for the interpreter ----

void start_shared_memory(int shared_bytes);  // of a new block
void shared_block_barrier();
void shared_warp_barrier(int warp);

// ---- asynchronous copies of the thread that runs: each lands as late as it may ----

void queue_copy(int64_t offset, const void* from, size_t bytes, const Site& site);
void commit_queued_copies();
void land_copies(size_t groups_left, const Site& site);

}  // namespace vqdm::simt
