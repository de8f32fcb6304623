#include "gaussian_w2.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "polar.h"
#include "spectral.h"

namespace vqdm::cpu {
namespace {

using Numbers = std::vector<double>;

// Below this share of the largest, an eigenvalue or singular value of a d x d matrix is rounding.
double negligible(int d) {
  return d * std::numeric_limits<double>::epsilon();
}

Numbers transposed(const Numbers& a, int d) {
  Numbers out(a.size());
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) out[int64_t(j) * d + i] = a[int64_t(i) * d + j];
  }
  return out;
}

// U and V of M, given M^T: as rows u_j and v_j; u_j is 0 for the singular values that are rounding.
void decompose(const Numbers& mt, int d, JacobiColumns& work, Numbers& u, Numbers& v) {
  double largest = 0;
  for (const double x : mt) largest = std::max(largest, std::abs(x));
  const double scale = largest > 0 ? std::ldexp(1.0, std::min(-std::ilogb(largest), 1023)) : 1.0;
  work.start();
  for (int j = 0; j < d; ++j) {
    for (int i = 0; i < d; ++i) work.b(j)[i] = scale * mt[int64_t(j) * d + i];
  }
  work.orthogonalize();
  Numbers sigma(d);
  for (int j = 0; j < d; ++j) sigma[j] = work.norm(j);
  const double least = negligible(d) * *std::max_element(sigma.begin(), sigma.end());
  for (int j = 0; j < d; ++j) {
    const double inverse = sigma[j] > least ? 1 / sigma[j] : 0.0;
    for (int i = 0; i < d; ++i) {
      u[int64_t(j) * d + i] = inverse * work.b(j)[i];
      v[int64_t(j) * d + i] = work.v(j)[i];
    }
  }
}

// sum_j (Q (r o x_j)) y_j^T for rows x_j, y_j, given Q^T.
Numbers moved_factor(const Numbers& qt, const Numbers& r, const Numbers& x, const Numbers& y, int d) {
  Numbers scaled(x.size()), turned(x.size()), out(x.size());
  for (int j = 0; j < d; ++j) {
    for (int i = 0; i < d; ++i) scaled[int64_t(j) * d + i] = r[i] * x[int64_t(j) * d + i];
  }
  add_product(scaled.data(), qt.data(), d, turned.data());
  add_product_tn(turned.data(), y.data(), d, out.data());
  return out;
}

// I - V T V^T, from Y = T diag(r) in the eigenbasis.
void identity_minus_map(Numbers& y, const RootEigen& eigen, int d, double* grad) {
  const Numbers& r = eigen.roots;
  const double largest = *std::max_element(r.begin(), r.end());
  const auto kept = [&](int j) { return r[j] * r[j] > negligible(d) * largest * largest; };
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) y[int64_t(i) * d + j] *= kept(j) ? 1 / r[j] : 0.0;
  }
  // The columns of the range are known; its rows follow by symmetry, and the rest is 0.
  Numbers t(y.size()), turned(y.size());
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) {
      const double both = y[int64_t(i) * d + j] + y[int64_t(j) * d + i];
      t[int64_t(i) * d + j] = kept(i) && kept(j) ? both / 2 : both;
    }
  }
  add_product(t.data(), eigen.vectors.data(), d, turned.data());
  std::fill(grad, grad + int64_t(d) * d, 0.0);
  add_product_tn(eigen.vectors.data(), turned.data(), d, grad);
  symmetrize(grad, d);
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) grad[int64_t(i) * d + j] = (i == j ? 1.0 : 0.0) - grad[int64_t(i) * d + j];
  }
}

// S = L L^T and the inverse of L, where S has full rank by a wide margin: 1 / |L^-1|_F^2, which is at most its least
// eigenvalue, is above 1e-10 of the largest variance. (Pivots alone would not tell.) An eigenvalue counts as zero at
// negligible(d).
struct Cholesky {
  Numbers l, inverse;
};

bool factor(const Numbers& s, int d, Cholesky& out) {
  double largest = 0;
  for (int i = 0; i < d; ++i) largest = std::max(largest, s[int64_t(i) * d + i]);
  const double least = 1e-10 * largest;
  // Column by column; row j of `columns` is column j of L, so that inner loops run along memory.
  Numbers columns(s.size());
  for (int j = 0; j < d; ++j) {
    double* column = columns.data() + int64_t(j) * d;
    for (int i = j; i < d; ++i) column[i] = s[int64_t(j) * d + i];
    for (int k = 0; k < j; ++k) {
      const double* earlier = columns.data() + int64_t(k) * d;
      const double factor = earlier[j];
      for (int i = j; i < d; ++i) column[i] -= factor * earlier[i];
    }
    if (!(column[j] > least)) return false;
    const double inverse = 1 / std::sqrt(column[j]);
    for (int i = j; i < d; ++i) column[i] *= inverse;
  }
  out.l = transposed(columns, d);
  out.inverse.assign(s.size(), 0.0);
  double squares = 0;
  for (int i = 0; i < d; ++i) {
    double* row = out.inverse.data() + int64_t(i) * d;
    for (int k = 0; k < i; ++k) {
      const double factor = out.l[int64_t(i) * d + k];
      const double* earlier = out.inverse.data() + int64_t(k) * d;
      for (int j = 0; j <= k; ++j) row[j] -= factor * earlier[j];
    }
    row[i] = 1;
    const double inverse = 1 / out.l[int64_t(i) * d + i];
    for (int j = 0; j <= i; ++j) {
      row[j] *= inverse;
      squares += row[j] * row[j];
    }
  }
  return squares * least < 1;
}

// I - sym(moved L^-1), given moved^T.
void identity_minus_solved(const Numbers& inverse, const Numbers& moved_t, int d, double* grad) {
  Numbers t(moved_t.size());
  add_product_tn(inverse.data(), moved_t.data(), d, t.data());
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) {
      grad[int64_t(i) * d + j] = (i == j ? 1.0 : 0.0) - (t[int64_t(i) * d + j] / 2 + t[int64_t(j) * d + i] / 2);
    }
  }
}

// (L X)^T for X given by its transpose.
Numbers moved_transposed(const Numbers& l, const Numbers& x_t, int d) {
  Numbers out(l.size());
  add_product(x_t.data(), transposed(l, d).data(), d, out.data());
  return out;
}

// False where the polar iteration does not settle.
bool bures_of_full_rank(const Cholesky& s1, const Cholesky& s2, int d, double& value, double* grad1, double* grad2) {
  Numbers w(s1.l.size());
  add_product_tn(s1.l.data(), s2.l.data(), d, w.data());
  if (!polar_factor(d, w.data())) return false;
  const Numbers moved1 = moved_transposed(s2.l, w, d);  // of L2 W^T
  value = 0;
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < d; ++j) value += std::pow(s1.l[int64_t(i) * d + j] - moved1[int64_t(j) * d + i], 2);
  }
  if (grad1 != nullptr) {
    identity_minus_solved(s1.inverse, moved1, d, grad1);
    identity_minus_solved(s2.inverse, moved_transposed(s1.l, transposed(w, d), d), d, grad2);
  }
  return true;
}

double bures_of_any_rank(Numbers& s1, Numbers& s2, int d, double* grad1, double* grad2) {
  const int64_t numbers = int64_t(d) * d;
  JacobiColumns work(d);
  RootEigen eigen1(d), eigen2(d);
  eigen1.compute(s1.data(), work);
  eigen2.compute(s2.data(), work);
  const Numbers &r1 = eigen1.roots, &r2 = eigen2.roots;

  Numbers qt(numbers), mt(numbers);
  add_product(eigen2.vectors.data(), transposed(eigen1.vectors, d).data(), d, qt.data());
  for (int j = 0; j < d; ++j) {
    for (int i = 0; i < d; ++i) mt[int64_t(j) * d + i] = r1[i] * qt[int64_t(j) * d + i] * r2[j];
  }
  Numbers u(numbers), v(numbers);
  decompose(mt, d, work, u, v);
  Numbers y1 = moved_factor(qt, r2, v, u, d);

  double value = 0;
  for (int i = 0; i < d; ++i) {
    const double* y = y1.data() + int64_t(i) * d;
    for (int j = 0; j < d; ++j) value += std::pow((i == j ? r1[i] : 0.0) - y[j], 2);
  }
  for (int j = 0; j < d; ++j) {  // what W leaves out of the second factor
    const double* uj = u.data() + int64_t(j) * d;
    if (std::any_of(uj, uj + d, [](double x) { return x != 0; })) continue;
    for (int i = 0; i < d; ++i) value += std::pow(r2[i] * v[int64_t(j) * d + i], 2);
  }
  if (grad1 != nullptr) {
    Numbers y2 = moved_factor(transposed(qt, d), r1, u, v, d);
    identity_minus_map(y1, eigen1, d, grad1);
    identity_minus_map(y2, eigen2, d, grad2);
  }
  return value;
}

}  // namespace

double squared_bures(const Matrix& cov1, const Matrix& cov2, int d, double* grad1, double* grad2) {
  const int64_t numbers = int64_t(d) * d;
  Numbers s1(numbers), s2(numbers);
  const bool finite1 = read_symmetric(cov1, d, s1.data()), finite2 = read_symmetric(cov2, d, s2.data());
  if (!finite1 || !finite2) {
    constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
    if (grad1 != nullptr) std::fill(grad1, grad1 + numbers, kNaN);
    if (grad2 != nullptr) std::fill(grad2, grad2 + numbers, kNaN);
    return kNaN;
  }
  Cholesky factor1, factor2;
  double value = 0;
  if (factor(s1, d, factor1) && factor(s2, d, factor2) &&
      bures_of_full_rank(factor1, factor2, d, value, grad1, grad2)) {
    return value;
  }
  return bures_of_any_rank(s1, s2, d, grad1, grad2);
}

}  // namespace vqdm::cpu
