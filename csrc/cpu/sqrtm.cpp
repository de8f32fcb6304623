#include "sqrtm.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "spectral.h"

namespace vqdm::cpu {

void sqrtm(const Matrix& a, int d, double* root, double* roots, double* vectors) {
  const int64_t numbers = int64_t(d) * d;
  std::vector<double> s(numbers);
  if (!read_symmetric(a, d, s.data())) {
    constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
    std::fill(root, root + numbers, kNaN);
    std::fill(roots, roots + d, kNaN);
    std::fill(vectors, vectors + numbers, 0.0);
    return;
  }
  JacobiColumns work(d);
  RootEigen eigen(d);
  eigen.compute(s.data(), work);
  std::copy(eigen.roots.begin(), eigen.roots.end(), roots);
  std::fill(root, root + numbers, 0.0);
  for (int j = 0; j < d; ++j) {
    for (int i = 0; i < d; ++i) {
      const double x = eigen.vectors[int64_t(j) * d + i];
      vectors[int64_t(i) * d + j] = x;
      s[int64_t(j) * d + i] = roots[j] * x;
    }
  }
  add_product_tn(eigen.vectors.data(), s.data(), d, root);
  symmetrize(root, d);
}

}  // namespace vqdm::cpu
