// Code sums on CUDA: for every code, the sum and the number of the features assigned to it.
//
//   sums[k]   = sum_{i : indices_i = k} z_i     counts[k] = #{i : indices_i = k}
//
// The rows of a code, in the order of the rows, are cut into chunks of 256; each chunk is summed from left to right in
// float64, starting from zero; so are the sums of the chunks; the total is rounded once. That order is the definition:
// the bits are those of the CPU kernel, on every device and in every run.
//
// How: a stable radix sort brings the rows of a code together, then one warp sums a chunk. No atomics, no one-hot, and
// a list of launches that the host never waits for.
//
// An index outside [0, K) ends in a device-side failure: to raise an error the host would have to wait.

#pragma once

#include <cstdint>

#include "operand.h"
#include "stream.h"

namespace vqdm::cuda {

struct CodeSumsParams {
  Operand z;        // [heads..., N, d] features
  Operand indices;  // [heads..., N] int64 (its dtype is not looked at)
  Heads heads;
  int64_t N;
  int64_t K;  // codes, >= 1; heads * K and heads * N are below 2^32 - 1
  int d;
  bool wide;        // sums are double
  void* sums;       // [heads..., K, d] out: double if wide, else float
  int64_t* counts;  // [heads..., K] out
};

// What code_sums() needs of device memory: O(heads (N + K) + heads N d / 128).
int64_t code_sums_workspace_bytes(const CodeSumsParams& params);

// Enqueues the kernels on `stream` and returns without synchronising. `workspace` is aligned to 16 bytes.
cudaError_t code_sums(const CodeSumsParams& params, void* workspace, cudaStream_t stream);

}  // namespace vqdm::cuda
