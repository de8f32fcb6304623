#include "faults.h"

#include <map>
#include <stdexcept>

#include "cuda/simt.cuh"

namespace vqdm::simt {
namespace {

constexpr int kThreads = 64, kBlocks = 2;

// Each thread passes its number to its neighbour through shared memory, and writes down what it got.
void pass_on(int* out, bool block_barrier, bool warp_barrier, int distance) {
  SharedMemory memory;
  const auto mail = memory.take<int>(kThreads);
  const int t = thread_index();
  mail[t] = t;
  if (block_barrier) sync_threads();
  if (warp_barrier) sync_warp();
  out[block_index() * kThreads + t] = mail[t ^ distance];
}

void sound(int* out) {
  pass_on(out, true, false, 33);
}
void sound_within_warps(int* out) {
  pass_on(out, false, true, 1);
}
void missing_barrier(int* out) {
  pass_on(out, false, false, 33);
}
void barrier_of_a_warp_for_two(int* out) {
  pass_on(out, false, true, 33);
}
void missing_warp_barrier(int* out) {
  pass_on(out, false, false, 1);
}

void missing_barrier_before_reuse(int* out) {
  pass_on(out, true, false, 33);
  SharedMemory memory;
  memory.take<int>(kThreads)[thread_index()] = 0;
}

// The barrier is there, but the shared memory is not looked at: only the order shows in the result.
void missing_barrier_in_global_memory(int* out) {
  const int t = thread_index();
  int* mine = out + block_index() * kThreads;
  mine[t] = t;
  const int got = mine[t ^ 33];
  sync_threads();
  mine[t] = got;
}

void out_of_bounds(int* out) {
  SharedMemory memory;
  const auto first = memory.take<int>(kThreads), second = memory.take<int>(kThreads);
  second[thread_index()] = 1;
  sync_threads();
  out[thread_index()] = first[thread_index() + 1 == kThreads ? kThreads : 0];  // `second` lies there
}

void more_than_launched(int* out) {
  SharedMemory memory;
  out[thread_index()] = int(memory.take<int>(1 << 10).count);
}

void never_written(int* out) {
  SharedMemory memory;
  out[thread_index()] = memory.take<int>(kThreads)[thread_index()];
}

void divergent_barrier(int*) {
  if (thread_index() < 40) {
    sync_threads();
  } else {
    sync_threads();
  }
}

void barrier_not_reached_by_all(int*) {
  if (thread_index() != 7) sync_threads();
}

void divergent_shuffle(int* out) {
  if (lane_index() < 16) out[thread_index()] = shuffle(1, 0);
}

void copy_read_too_early(int* out) {
  alignas(16) static const uint32_t source[4] = {1, 2, 3, 4};
  SharedMemory memory;
  const auto landing = memory.take<uint4>(1);
  if (thread_index() == 0) {
    copy_async(landing, 0, reinterpret_cast<const uint4*>(source));
    commit_copies();
    wait_copies<1>();  // one group may still be under way, and it is
    out[0] = int(landing.as<uint32_t>()[0]);
  }
}

// The stage of a pipeline is fetched anew before the barrier that says that all have done with it.
void copy_over_what_is_read(int* out) {
  alignas(16) static const uint32_t source[4] = {1, 2, 3, 4};
  SharedMemory memory;
  const auto stage = memory.take<uint4>(1);
  if (thread_index() == 0) stage[0] = uint4{};
  sync_threads();
  out[thread_index()] = int(stage.as<uint32_t>()[0]);
  if (thread_index() == 0) copy_async(stage, 0, reinterpret_cast<const uint4*>(source));
  sync_threads();
  commit_copies();
  wait_copies<0>();
}

void copy_waited_for_by_nobody(int* out) {
  alignas(16) static const uint32_t source[4] = {1, 2, 3, 4};
  SharedMemory memory;
  const auto stage = memory.take<uint4>(1);
  if (thread_index() == 0) stage[0] = uint4{};
  sync_threads();
  if (thread_index() == 0) copy_async(stage, 0, reinterpret_cast<const uint4*>(source));
  commit_copies();
  sync_threads();
  out[thread_index()] = int(stage.as<uint32_t>()[0]);
}

// Lanes 0 and 1 read before the warp's barrier, lane 2 after it; nothing is between lane 2 and the writer, lane 3.
void reader_after_other_readers(int* out) {
  SharedMemory memory;
  const auto word = memory.take<int>(1);
  const int t = thread_index();
  if (t == 0) word[0] = 7;
  sync_threads();
  if (t < 2) out[t] = word[0];
  sync_warp();
  if (t == 2) out[t] = word[0];
  if (t == 3) word[0] = 8;
}

void sound_copy(int* out) {
  alignas(16) static const uint32_t source[4] = {1, 2, 3, 4};
  SharedMemory memory;
  const auto landing = memory.take<uint4>(1);
  if (thread_index() == 0) copy_async(landing, 0, reinterpret_cast<const uint4*>(source));
  commit_copies();
  wait_copies<0>();
  sync_threads();
  out[block_index() * kThreads + thread_index()] = int(landing.as<uint32_t>()[3]);
}

void votes(int* out) {
  const int t = thread_index(), lane = lane_index();
  const bool odd = lane % 2 == 1;
  out[block_index() * kThreads + t] = ballot(odd) == 0xaaaaaaaau && any(lane == 5) && !any(lane > 31) && !all(odd) &&
                                      all(lane < 32) && shuffle(100 + lane, 7) == 107 &&
                                      shuffle_xor(double(lane), 4) == double(lane ^ 4);
}

using Kernel = void (*)(int*);
const std::map<std::string, Kernel> kFaults = {
    {"sound", sound},
    {"sound_within_warps", sound_within_warps},
    {"sound_copy", sound_copy},
    {"sound_votes", votes},
    {"missing_barrier", missing_barrier},
    {"missing_warp_barrier", missing_warp_barrier},
    {"missing_barrier_before_reuse", missing_barrier_before_reuse},
    {"missing_barrier_in_global_memory", missing_barrier_in_global_memory},
    {"barrier_of_a_warp_for_two", barrier_of_a_warp_for_two},
    {"out_of_bounds", out_of_bounds},
    {"more_than_launched", more_than_launched},
    {"never_written", never_written},
    {"divergent_barrier", divergent_barrier},
    {"barrier_not_reached_by_all", barrier_not_reached_by_all},
    {"divergent_shuffle", divergent_shuffle},
    {"copy_read_too_early", copy_read_too_early},
    {"copy_over_what_is_read", copy_over_what_is_read},
    {"copy_waited_for_by_nobody", copy_waited_for_by_nobody},
    {"reader_after_other_readers", reader_after_other_readers},
};

struct MmaParams {
  bool bfloat16;
  const uint32_t *a, *b;
  float* acc;
};

void mma_kernel(MmaParams p) {
  const int lane = lane_index();
  float acc[4];
  for (int i = 0; i < 4; ++i) acc[i] = p.acc[lane * 4 + i];
  const uint4 a{p.a[lane * 4], p.a[lane * 4 + 1], p.a[lane * 4 + 2], p.a[lane * 4 + 3]};
  if (p.bfloat16) {
    mma_bf16(acc, a, p.b[lane * 2], p.b[lane * 2 + 1]);
  } else {
    mma_f16(acc, a, p.b[lane * 2], p.b[lane * 2 + 1]);
  }
  for (int i = 0; i < 4; ++i) p.acc[lane * 4 + i] = acc[i];
}

}  // namespace

std::vector<std::string> fault_names() {
  std::vector<std::string> names;
  for (const auto& [name, kernel] : kFaults) names.push_back(name);
  return names;
}

std::vector<int> run_fault(const std::string& name) {
  const auto found = kFaults.find(name);
  if (found == kFaults.end()) throw std::invalid_argument("no kernel is called " + name);
  std::vector<int> out(kBlocks * kThreads, -1);
  launch(found->second, {kBlocks, kThreads, 2 * kThreads * int(sizeof(int))}, nullptr, out.data());
  return out;
}

std::vector<float> run_mma(bool bfloat16, const std::vector<uint32_t>& a, const std::vector<uint32_t>& b,
                           const std::vector<float>& acc) {
  if (a.size() != 128 || b.size() != 64 || acc.size() != 128) throw std::invalid_argument("not one warp's fragments");
  std::vector<float> out = acc;
  launch(mma_kernel, {1, kWarpSize, 0}, nullptr, MmaParams{bfloat16, a.data(), b.data(), out.data()});
  return out;
}

}  // namespace vqdm::simt
