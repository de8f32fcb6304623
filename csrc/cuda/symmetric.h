// Symmetric matrices as Jacobi's method takes them (jacobi.h): read from any type and strides, symmetrised, brought to
// a common size, and shifted to be positive semi-definite.
//
//   s = a/2 + a^T/2      columns = s / 4^k + c I      1/4 <= max |s_ij| / 4^k < 1      root_scale = 2^k
//   c = max(0, max_i (sum_{j != i} |s_ij| - s_ii)) / 4^k      (Gershgorin's circles)
//
// The power of four keeps squares in range at any scale and costs no digit; the shift is there because one-sided Jacobi
// cannot tell an eigenvalue from its negative.
//
// A matrix that holds NaN or Inf becomes zero, with root_scale NaN: what is made of it by way of root_scale is NaN, and
// no loop meets one.

#pragma once

#include <cstdint>

#include "operand.h"
#include "stream.h"

namespace vqdm::cuda {

struct SymmetricParams {
  Operand a[2];  // [heads..., n, n] each
  int sides;     // how many of them there are: matrix m = side * heads + head
  Heads heads;
  int n;
  double* columns;     // [matrices, n, 2 n] out: the first half of each column, b; the second is left alone
  double* shift;       // [matrices] out: c
  double* root_scale;  // [matrices] out
};

// Enqueues one kernel on `stream` and returns without synchronising.
cudaError_t load_symmetric(const SymmetricParams& params, cudaStream_t stream);

}  // namespace vqdm::cuda
