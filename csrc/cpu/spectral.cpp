#include "spectral.h"

#include <algorithm>
#include <cmath>

#include "clones.h"

namespace vqdm::cpu {

bool read_symmetric(const Matrix& a, int n, double* out) {
  bool finite = true;
  for (int i = 0; i < n; ++i) {
    a.load(i, n, out + int64_t(i) * n);
    for (int j = 0; j < n; ++j) finite = finite && std::isfinite(out[int64_t(i) * n + j]);
  }
  symmetrize(out, n);
  return finite;
}

VQDM_CLONES void add_product_tn(const double* a, const double* b, int n, double* c) {
  for (int k = 0; k < n; ++k) {
    for (int i = 0; i < n; ++i) {
      const double factor = a[int64_t(k) * n + i];
      const double* from = b + int64_t(k) * n;
      double* to = c + int64_t(i) * n;
      for (int j = 0; j < n; ++j) to[j] += factor * from[j];
    }
  }
}

VQDM_CLONES void add_product(const double* a, const double* b, int n, double* c) {
  for (int i = 0; i < n; ++i) {
    double* to = c + int64_t(i) * n;
    for (int k = 0; k < n; ++k) {
      const double factor = a[int64_t(i) * n + k];
      const double* from = b + int64_t(k) * n;
      for (int j = 0; j < n; ++j) to[j] += factor * from[j];
    }
  }
}

void symmetrize(double* c, int n) {
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < i; ++j) {
      double &x = c[int64_t(i) * n + j], &y = c[int64_t(j) * n + i];
      x = y = x / 2 + y / 2;
    }
  }
}

void RootEigen::compute(double* s, JacobiColumns& work) {
  const int n = work.n();
  double largest = 0;
  for (int64_t i = 0; i < int64_t(n) * n; ++i) largest = std::max(largest, std::abs(s[i]));
  // By a power of four, so that its root is exact; squares then neither overflow nor vanish.
  const int exponent = largest > 0 ? (std::ilogb(largest) + 1 + 1024) / 2 - 512 : 0;
  for (int64_t i = 0; i < int64_t(n) * n; ++i) s[i] = std::ldexp(s[i], -2 * exponent);
  symmetric_eigen(s, work, roots.data(), vectors.data());
  for (double& root : roots) root = std::ldexp(std::sqrt(std::max(root, 0.0)), exponent);
}

}  // namespace vqdm::cpu
