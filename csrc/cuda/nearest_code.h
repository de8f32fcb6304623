// Nearest code on CUDA: for every feature z_i, the code e_k with the smallest (power) distance.
//
//   D[i][k]    = sum_j (z_ij - e_kj)^2 + bias_k     float64, j from left to right, no fused multiply-add
//   dist2[i]   = min_k D[i][k]                      rounded once to the output type
//   indices[i] = argmin_k D[i][k]                   ties go to the smallest k
//
// Codes with a NaN or Inf, or with bias NaN or +Inf, are never chosen while another exists; where none exists, and for
// a row with a NaN or Inf, the index is 0 and dist2 NaN. A D of Inf - Inf (a bias of -Inf) counts as +Inf.
//
// Torch-free on purpose: plain device pointers in, cudaError_t out. Checks, allocation and dtype dispatch live in
// csrc/ops/nearest_code_cuda.cpp.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace vqdm::cuda {

template <typename TZ, typename TE>
struct NearestCodeParams {
  const TZ* z;  // [N, d] features
  int64_t z_row_stride, z_col_stride;
  const TE* e;  // [K, d] codes
  int64_t e_row_stride, e_col_stride;
  const double* bias;  // [K], or null
  int64_t bias_stride;
  void* dist2;       // [N] out: double if wide, else float
  int64_t* indices;  // [N] out
  int64_t N;         // 0 launches nothing
  int64_t K;         // >= 1
  int d;             // >= 1
  bool wide;
};

// Enqueues the kernel on `stream` and returns without synchronising.
// Instantiated for every pair of double, float, __half and __nv_bfloat16.
template <typename TZ, typename TE>
cudaError_t nearest_code(const NearestCodeParams<TZ, TE>& params, cudaStream_t stream);

}  // namespace vqdm::cuda
