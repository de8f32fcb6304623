// Mean and covariance of the rows of a matrix on CUDA, exact for any offset.
//
//   mean = (1/N) sum_i x_i      cov = sum_i (x_i - mean) (x_i - mean)^T / divisor, exactly symmetric
//
// Without rows the sums are 0. Rows are cut into blocks of 64. The mean of a block, rounded to the type of x, is taken
// off its rows, exactly or nearly so; the error of that centre is known in float64. Products of the centred rows are
// summed in the type of x within a block, in float64 beyond. Blocks, and then chunks of blocks, are merged in their
// order in float64 (Chan, Golub and LeVeque, 1983); with n and m rows, means a and b, scatters S and T, the union has
//
//   mean a + (b - a) m / (n + m)      scatter S + T + (b - a) (b - a)^T n m / (n + m)
//
// where means are counted from the first block's centre, so that a far one is not rounded. Chunks depend on N and d
// alone: the bits are the same in every run and on every GPU. NaN and Inf spread as arithmetic has it.

#pragma once

#include <cstdint>

#include "operand.h"
#include "stream.h"

namespace vqdm::cuda {

struct MomentsParams {
  Operand x;  // [N, d] float32 or float64
  int64_t N;
  int d;
  double divisor;
  double* mean;  // [d] out
  double* cov;   // [d, d] out
};

// What moments() needs of device memory: O(d^2), at most 512 (d + 1) d numbers.
int64_t moments_workspace_bytes(const MomentsParams& params);

// Enqueues the kernels on `stream` and returns without synchronising. `workspace` is aligned to 16 bytes.
cudaError_t moments(const MomentsParams& params, void* workspace, cudaStream_t stream);

}  // namespace vqdm::cuda
