// Squared W2 distance of Gaussians, and its gradients in the covariances, on CUDA; in float64 inside.
//
//   S1 = V1 diag(r1^2) V1^T, S2 likewise      Q = V1^T V2      M = diag(r1) Q diag(r2) = sum_j sigma_j u_j v_j^T
//   W = sum u_j v_j^T over the sigma_j that are not negligible (> d 2^-52 times the largest)
//   Y1 = Q diag(r2) W^T      Y2 = Q^T diag(r1) W      (the transported factors, in the eigenbases)
//
//   w2 = |mean1 - mean2|^2 + |diag(r1) - Y1|_F^2 + sum_{j left out of W} |r2 o v_j|^2
//
// which is never negative and does not cancel where the covariances agree. The gradient in S1 is I - V1 T V1^T, with T
// the symmetric matrix of least norm with T diag(r1) = Y1 on the range of S1: (Y1 diag(1/r1) + its transpose), halved
// where both row and column belong to the range (r^2 > d 2^-52 times the largest). In S2: the same with Y2, r2, V2.
//
// Eigen- and singular values by Jacobi's method (jacobi.h). An item that holds NaN or Inf gives NaN, and leaves the
// others alone; in means, it leaves the gradients alone too.

#pragma once

#include <cstdint>

#include "operand.h"
#include "stream.h"

namespace vqdm::cuda {

struct GaussianW2Params {
  Operand mean1, mean2;  // [heads..., d]
  Operand cov[2];        // [heads..., d, d], symmetrised as they are read
  Heads heads;
  int d;            // <= kJacobiMaxSize
  bool wide;        // w2 is double
  void* w2;         // [heads...] out: double if wide, else float
  double* grad[2];  // [heads..., d, d] out, exactly symmetric; or null
};

// What gaussian_w2() needs of device memory: O(heads d^2).
int64_t gaussian_w2_workspace_bytes(const GaussianW2Params& params);

// Enqueues the kernels on `stream` and returns without synchronising. `workspace` is aligned to 16 bytes.
cudaError_t gaussian_w2(const GaussianW2Params& params, void* workspace, cudaStream_t stream);

}  // namespace vqdm::cuda
