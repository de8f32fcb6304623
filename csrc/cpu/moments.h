// Mean and covariance of the rows of a matrix.
//
//   mean = (1/N) sum_i x_i          cov = sum_i (x_i - mean)(x_i - mean)^T / divisor          without rows, sums are 0
//
// Blocks of at most kMomentRows rows are centred on their mean, rounded to the working type T (float for float32 input,
// else double), and their products summed in T; all else, merging the blocks included (Chan, Golub and LeVeque, 1983),
// is in float64, on means as differences from a first one: an offset common to all rows costs no digits. The split
// into blocks and groups of blocks depends on N and d alone, so the number of threads does not change a bit.

#pragma once

#include <cstdint>

#include "matrix.h"
#include "parallel_for.h"

namespace vqdm::cpu {

inline constexpr int kMomentRows = 128;

struct MomentsParams {
  Matrix x;  // [N, d] float32 or float64
  int64_t N = 0;
  int d = 0;
  double divisor = 1;
};

void moments(const MomentsParams& params, double* mean, double* cov, const ParallelFor& parallel_for);

}  // namespace vqdm::cpu
