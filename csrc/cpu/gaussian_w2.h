// The squared Bures distance of two covariances, and its gradients, as an orthogonal Procrustes problem.
//
// With S1 = V1 diag(r1^2) V1^T and S2 likewise, Q = V1^T V2, and the singular value decomposition
// diag(r1) Q diag(r2) = U diag(sigma) V^T, everything stands in the two eigenbases:
//
//   W  = sum_j u_j v_j^T over the j with sigma_j above rounding
//   Y1 = Q diag(r2) W^T                                   what the transport map makes of the factor V1 diag(r1)
//   B^2 = |diag(r1) - Y1|_F^2 + sum_{other j} |r2 v_j|^2  a sum of squares: no cancellation where S1 and S2 agree
//   dB^2/dS1 = I - V1 T V1^T,  T = Y1 diag(1/r1)          symmetrised; 0 where r1 is rounding (pseudo-inverse)
//
// and the same with Y2 = Q^T diag(r1) W for S2. Where both have full rank by a wide margin, Cholesky factors stand in
// for V diag(r), at a third of the time: M = L1^T L2, B^2 = |L1 - L2 W^T|_F^2, T = L2 W^T L1^-1. A covariance that
// holds NaN or Inf makes everything NaN.

#pragma once

#include <cstdint>

#include "matrix.h"

namespace vqdm::cpu {

// Returns B^2; grad1 and grad2 [d, d] may be null together.
double squared_bures(const Matrix& cov1, const Matrix& cov2, int d, double* grad1, double* grad2);

}  // namespace vqdm::cpu
