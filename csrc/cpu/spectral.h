// Symmetric positive semi-definite matrices as their square roots of eigenvalues and their eigenvectors.

#pragma once

#include <cstdint>
#include <vector>

#include "jacobi.h"
#include "matrix.h"

namespace vqdm::cpu {

// out [n, n] = (a + a^T) / 2, halved first so that no finite entry overflows; whether all entries are finite.
bool read_symmetric(const Matrix& a, int n, double* out);

// C += A^T B, and C += A B, of [n, n] matrices.
void add_product_tn(const double* a, const double* b, int n, double* c);
void add_product(const double* a, const double* b, int n, double* c);

// c_ij and c_ji become their mean, halved first: the same bits.
void symmetrize(double* c, int n);

// S = sum_j root_j^2 e_j e_j^T; negative eigenvalues, as rounding makes them, count as zero.
struct RootEigen {
  explicit RootEigen(int n) : roots(size_t(n)), vectors(size_t(n) * n) {}
  std::vector<double> roots;    // [n], any order
  std::vector<double> vectors;  // [n, n], e_j in row j

  // s [n, n] is scaled in place, by a power of two.
  void compute(double* s, JacobiColumns& work);
};

}  // namespace vqdm::cpu
