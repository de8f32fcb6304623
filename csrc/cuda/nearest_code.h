// Nearest code on CUDA: for every feature z_i, the code e_k with the smallest (power) distance.
//
//   D[i][k]    = sum_j (z_ij - e_kj)^2 + bias_k     float64, j from left to right, no fused multiply-add
//   dist2[i]   = min_k D[i][k]                      rounded once to the output type
//   indices[i] = argmin_k D[i][k]                   ties go to the smallest k
//
// Codes with a NaN or Inf, or with bias NaN or +Inf, are never chosen while another exists; where none exists, and for
// a row with a NaN or Inf, the index is 0 and dist2 NaN. A D of Inf - Inf (a bias of -Inf) counts as +Inf.
//
// How, in a fixed list of launches that the host never waits for:
//   1. measure   centre and scale of the codes, from a sample                            nearest_code_codes.cuh
//   2. pack      bias ||e'||^2 + bias, maxima for the bound, codes as half precision     nearest_code_codes.cuh
//   3. filter    scores of all pairs, reduced on the fly to the smallest group minima    nearest_code_tensor_core.cuh
//   4. decide    the few groups that can hold the winner, exactly; where the bound       nearest_code_decide.cuh
//                cannot tell, the row goes to a list
//   5. filter and decide again for the rows of that list, in float32                     nearest_code_portable.cuh
//   6. all codes exactly, for the rows that even this leaves open                        nearest_code_decide.cuh
// The portable path does without half precision: step 5 for all rows, then step 6. A filter decides only what is not
// looked at, so both paths give the same bits, and neither splits nor the order of blocks show.
//
// Torch-free on purpose: plain device pointers in, cudaError_t out. Checks, allocation and dtype dispatch live in
// csrc/ops/nearest_code_cuda.cpp.

#pragma once

#include <cstdint>

#include "operand.h"
#include "stream.h"

namespace vqdm::cuda {

struct NearestCodeParams {
  Operand z;     // [heads..., N, d] features
  Operand e;     // [heads..., K, d] codes; head strides may be 0
  Operand bias;  // [heads..., K], its row_stride steps over K; or null
  Heads heads;
  int64_t N;         // features of one head; 0 launches nothing
  int64_t K;         // codes, >= 1, < 2^31 - 128
  int d;             // >= 1
  bool wide;         // dist2 is double
  void* dist2;       // [heads..., N] out: double if wide, else float
  int64_t* indices;  // [heads..., N] out
};

// kFastest is by tensor cores, but where d is too large for the device's shared memory.
enum class NearestCodePath { kFastest, kPortable };

// What nearest_code() needs of device memory: O(N + K d).
int64_t nearest_code_workspace_bytes(const NearestCodeParams& params, NearestCodePath path);

// Enqueues the kernels on `stream` and returns without synchronising. `workspace` is aligned to 16 bytes and stays
// untouched by others until the kernels are through.
cudaError_t nearest_code(const NearestCodeParams& params, NearestCodePath path, void* workspace, cudaStream_t stream);

}  // namespace vqdm::cuda
