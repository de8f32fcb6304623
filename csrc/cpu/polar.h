// The orthogonal polar factor of a square matrix of full rank: the orthogonal W nearest to M, P Q^T of M = P Sig Q^T.
//
//   X <- (g X + (g X)^-T) / 2,  g^4 = |X^-1|_1 |X^-1|_inf / (|X|_1 |X|_inf)          scaled Newton (Higham, 1986)
//
// Quadratic: 5 steps where the condition is 10, 9 where it is 1e10.

#pragma once

namespace vqdm::cpu {

// m [n, n] becomes W. False where the iteration does not settle: M is singular, or not finite.
bool polar_factor(int n, double* m);

}  // namespace vqdm::cpu
