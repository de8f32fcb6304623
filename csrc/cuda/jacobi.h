// Eigenvalues of symmetric and singular values of square matrices, many at once, by one-sided Jacobi in float64.
//
//   B V = [b_1 .. b_n] with orthogonal b_j, V orthogonal:
//     B = S + shift I, symmetric positive semi-definite      eigenvalues v_j . b_j - shift of S, eigenvectors v_j
//     B any square matrix                                    singular values |b_j|, b_j / |b_j| left, v_j right vectors
//
// Where a whole matrix fits into shared memory (n <= 120 on sm_90) one launch does it, a block per matrix. Otherwise
// the columns are cut into blocks, each launch brings pairs of blocks together, and a counter on the device lets the
// launches after the last needed sweep return at once. Launch lists are static; the host never waits.
//
// Bits are the same in every run. Loops are bounded; entries must be finite, of size about 1 or smaller.

#pragma once

#include <cstdint>

#include "stream.h"

namespace vqdm::cuda {

inline constexpr int kJacobiMaxSize = 256;

struct JacobiParams {
  int64_t matrices;
  int n;            // <= kJacobiMaxSize
  double* columns;  // [matrices, n, 2 n] in: b_j in the first half of column j; out: [b_j; v_j]
  // Null: singular values. Else [matrices]: eigenvalues, less `shift`, those below zero counting as zero; `values` are
  // their square roots, times `root_scale`.
  const double* shift;
  const double* root_scale;
  double* values;  // [matrices, n] out, in no certain order
  double*
      inverses;  // [matrices, n] out: 1 / value; 0 where the eigen- or singular value is <= n 2^-52 times the largest
  double* largest;  // [matrices] out: of `values`
};

int64_t jacobi_workspace_bytes(const JacobiParams& params);

// Enqueues the kernels on `stream` and returns without synchronising. `workspace` is aligned to 16 bytes.
cudaError_t jacobi(const JacobiParams& params, void* workspace, cudaStream_t stream);

}  // namespace vqdm::cuda
