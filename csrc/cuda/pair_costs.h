// Reductions over the costs of all pairs on CUDA, with c_ij = ||x_i - y_j||, or its square: what Sinkhorn consists of.
//
//   pair_logsumexp  out[h][i] = log sum_j exp(weights_j - scale c_ij)
//   pair_sums       out[h]    = sum_ij ||x_i - y_j|| - shift, and sum_ij of its square
//   pair_argmin     out[h][i] = the lowest j that minimises (c_ij + bias_j) - noise G_ij, in float64: differences,
//                               squares, a left-to-right sum, no fused multiply-add; 0 where every such number is NaN
//
// G_ij is a Gumbel number of (seed, first_row + i, j, h); see counter_random.cuh. The costs of the first two are
// computed in T = float, or double if `wide`. A NaN or Inf of x_i makes out[h][i] of pair_logsumexp NaN, one of y_j or
// weights_j all of out[h], but that a weight of -Inf leaves its code out.
//
// How, in a fixed list of launches that the host never waits for:
//   1. measure   a centre and a unit of y, the largest weight                                      pair_costs_pack.cuh
//   2. pack      x and y, centred, in tiles of 128: as T, or as two pieces in half precision       pair_costs_pack.cuh
//   3. reduce    all pairs, tile by tile: x . y by tensor cores or in T           pair_costs_{tensor_core,portable}.cuh
//                then ||x||^2 + ||y||^2 - 2 x . y and what is made of it  pair_costs_{logsumexp,sums,argmin}.cuh
//   4. merge     the parts into which the reduced axis was split
// N x M is never stored. How much is split depends on the shapes alone, and all sums have a fixed order: the bits are
// the same in every run and on every GPU, but for those on which another kernel serves (see `tensor_cores`).
//
// Pairs are computed one by one where products say too little: costs far below ||x - centre||, rows and codes very far
// out, and in pair_argmin all codes that tie. Where most pairs are such, that is right and many times slower.
//
// Torch-free on purpose: plain device pointers in, cudaError_t out.

#pragma once

#include <cstdint>

#include "operand.h"
#include "stream.h"

namespace vqdm::cuda {

struct PairParams {
  Operand x;        // [heads, N, d]; head_stride[0] of each operand steps over the heads, and may be 0
  Operand y;        // [heads, M, d]
  Operand weights;  // [heads, M] float64, its row_stride steps over M: weights, or bias; null for pair_sums
  Operand factor;   // [heads] float64: scale, shift, or noise (0 for none)
  int64_t heads;
  int64_t N, M;   // may be 0
  int d;          // >= 1
  bool squared;   // false for pair_sums
  bool wide;      // costs in float64
  uint64_t seed;  // of pair_argmin, and where its rows start
  int64_t first_row;
};

enum class PairOp { kLogsumexp, kSums, kArgmin };

// `tensor_cores` allows for them; where d is too large for the device's shared memory, or the costs are wide, they do
// not serve. Enqueues the kernels on `stream` and returns without synchronising. `workspace` is aligned to 16 bytes and
// has pair_workspace_bytes(), O((heads (N + M)) d).
int64_t pair_workspace_bytes(const PairParams& params, PairOp op, bool tensor_cores);

cudaError_t pair_logsumexp(const PairParams& params, bool tensor_cores, double* out, void* workspace,
                           cudaStream_t stream);
cudaError_t pair_sums(const PairParams& params, bool tensor_cores, double* out, void* workspace, cudaStream_t stream);
cudaError_t pair_argmin(const PairParams& params, bool tensor_cores, int64_t* out, void* workspace,
                        cudaStream_t stream);

}  // namespace vqdm::cuda
