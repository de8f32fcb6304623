// Orthogonal transformations of small float64 matrices by one-sided Jacobi rotations (Hestenes, 1958).
//
// The columns of B are rotated in pairs until they are orthogonal; the same rotations turn the identity into V:
//
//   B V = U diag(sigma)          singular values sigma_j = |column j|, whatever the rank
//
// A symmetric matrix A is first made positive semi-definite, as A + c I with c from Gershgorin's circles, since
// singular values do not tell lambda from -lambda; its eigenvalues are v_j . A v_j.
//
// Columns are orthogonal to 8 u sqrt(d), u = 2^-53. LAPACK is faster from about d = 32 on.

#pragma once

#include <cstdint>
#include <vector>

#include "aligned_buffer.h"

namespace vqdm::cpu {

// n columns, each a row here: b_j [stride] and then v_j [stride], zeros beyond n.
class JacobiColumns {
 public:
  explicit JacobiColumns(int n) : n_(n), stride_((int64_t(n) + 7) / 8 * 8), data_(2 * n * stride_), norm2_(size_t(n)) {}

  int n() const { return n_; }
  double* b(int j) { return data_.data() + 2 * j * stride_; }
  double* v(int j) { return b(j) + stride_; }

  void start();          // V = I, and zeros beyond n; b_j are then the caller's to write
  void orthogonalize();  // ends for any content; what is not finite stays so
  double norm(int j);    // |b_j|

 private:
  int n_;
  int64_t stride_;
  AlignedBuffer<double> data_;
  std::vector<double> norm2_;
};

// Of the symmetric a [n, n], |a_ij| <= 1: eigenvalues, and eigenvectors as the rows of `vectors` [n, n]; any order.
void symmetric_eigen(const double* a, JacobiColumns& work, double* values, double* vectors);

}  // namespace vqdm::cpu
