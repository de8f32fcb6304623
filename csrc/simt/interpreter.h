// Runs CUDA kernels on the host, one fibre per thread, so that they can be tested on machines without a GPU.
//
// A block's threads take turns on one processor. A thread runs until it comes to a barrier, a warp operation or its
// end; which thread runs next is the schedule's choice, so a schedule is an order in which real hardware might have run
// them. What the order alone does not show is checked: see shared_memory.h for races and bounds. A kernel that breaks
// the rules (threads at different barriers, a warp operation that not all lanes reach) raises std::runtime_error, with
// the places named, out of run().

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>

namespace vqdm::simt {

inline constexpr int kWarpSize = 32;
inline constexpr int kMaxThreads = 1024;
inline constexpr int kMaxSharedBytes = 227 << 10;  // as much as a block can have on sm_90

enum class Schedule { kForward, kReverse, kRandom };

// Of the threads of a block, and of the blocks; holds for all later runs. The seed counts for kRandom alone.
void set_schedule(Schedule schedule, uint64_t seed);

// What a block can have; less than kMaxSharedBytes makes kernels take the way that they take on smaller devices.
void set_max_shared_bytes(int bytes);
int max_shared_bytes();

// Calls body once for every thread of every block. One kernel at a time in a process.
void run(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body);

// ---- for the kernel, through device.h ----

using Site = std::source_location;

struct Place {
  int thread, block_size;
  int64_t block, num_blocks;
};
const Place& place();  // of the thread that runs now

void block_barrier(const Site& site);
void warp_barrier(const Site& site);

inline constexpr size_t kMaxOperandBytes = 48;
struct WarpOperands {
  alignas(16) unsigned char in[kWarpSize][kMaxOperandBytes];
  alignas(16) unsigned char out[kWarpSize][kMaxOperandBytes];
};
// All lanes give `in`; the last to arrive runs combine on all of them; each gets its `out`.
void warp_collective(const void* in, size_t in_bytes, void* out, size_t out_bytes, void (*combine)(WarpOperands&),
                     const Site& site);

[[noreturn]] void fail(const std::string& what);
std::string describe(const Site& site);

}  // namespace vqdm::simt
