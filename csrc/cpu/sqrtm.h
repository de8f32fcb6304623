// Square root of a symmetric positive semi-definite matrix.
//
//   a = V diag(l) V^T        root = V diag(sqrt(max(l, 0))) V^T        of the symmetrised a, in float64
//
// A matrix that holds NaN or Inf gives NaN.

#pragma once

#include <cstdint>

#include "matrix.h"

namespace vqdm::cpu {

// root [d, d]; roots [d] of the eigenvalues; vectors [d, d], the eigenvectors as columns.
void sqrtm(const Matrix& a, int d, double* root, double* roots, double* vectors);

}  // namespace vqdm::cpu
