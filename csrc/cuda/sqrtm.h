// Square roots of symmetric positive semi-definite matrices on CUDA, in float64 inside.
//
//   s = a/2 + a^T/2 = V diag(l) V^T      roots = sqrt(max(l, 0))      root = V diag(roots) V^T, exactly symmetric
//
// Eigenvalues by Jacobi's method (jacobi.h), in no certain order. A matrix that holds NaN or Inf gives NaN for root and
// roots, the identity for vectors, and leaves the others alone.

#pragma once

#include <cstdint>

#include "operand.h"
#include "stream.h"

namespace vqdm::cuda {

struct SqrtmParams {
  Operand a;  // [heads..., d, d]
  Heads heads;
  int d;            // <= kJacobiMaxSize
  bool wide;        // root is double
  void* root;       // [heads..., d, d] out: double if wide, else float
  double* roots;    // [heads..., d] out
  double* vectors;  // [heads..., d, d] out: V, its columns the eigenvectors
};

// What sqrtm() needs of device memory: O(heads d^2).
int64_t sqrtm_workspace_bytes(const SqrtmParams& params);

// Enqueues the kernels on `stream` and returns without synchronising. `workspace` is aligned to 16 bytes.
cudaError_t sqrtm(const SqrtmParams& params, void* workspace, cudaStream_t stream);

}  // namespace vqdm::cuda
