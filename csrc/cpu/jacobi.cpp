#include "jacobi.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "clones.h"

namespace vqdm::cpu {
namespace {

constexpr double kUnit = std::numeric_limits<double>::epsilon() / 2;
constexpr int kMaxSweeps = 30;  // 6 to 12 are usual

// Columns are padded to whole groups of eight.
[[gnu::always_inline]] inline double dot(const double* x, const double* y, int64_t n) {
  double lanes[8] = {};
  for (int64_t i = 0; i < n; i += 8) {
#pragma GCC unroll 8
    for (int l = 0; l < 8; ++l) lanes[l] += x[i + l] * y[i + l];
  }
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

VQDM_CLONES double dot_of(const double* x, const double* y, int64_t n) {
  return dot(x, y, n);
}

VQDM_CLONES double quadratic_form(const double* a, const double* x, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) {
    double row = 0;
    for (int j = 0; j < n; ++j) row += a[int64_t(i) * n + j] * x[j];
    sum += row * x[i];
  }
  return sum;
}

struct Rotation {
  double s, tau, t;  // sine, tangents of half the angle and of the angle
};

// The rotation of columns with these squares and this product that makes them orthogonal, by the smaller angle.
Rotation orthogonalizing(double alpha, double beta, double gamma) {
  const double zeta = (beta - alpha) / (2 * gamma);
  const double t = std::copysign(1.0, zeta) / (std::abs(zeta) + std::sqrt(1 + zeta * zeta));
  const double c = 1 / std::sqrt(1 + t * t);
  return {c * t, c * t / (1 + c), t};
}

// One pass over all pairs; whether any was rotated. Squares follow the rotations, as |b|^2 - t gamma and + t gamma.
VQDM_CLONES bool sweep_pairs(double* data, int n, int64_t stride, double* norm2, double tolerance, double negligible2) {
  bool rotated = false;
  for (int p = 0; p < n; ++p) {
    double* x = data + 2 * p * stride;
    for (int q = p + 1; q < n; ++q) {
      double* y = data + 2 * q * stride;
      const double alpha = norm2[p], beta = norm2[q];
      if (std::min(alpha, beta) <= negligible2) continue;
      const double gamma = dot(x, y, stride);
      if (!(std::abs(gamma) > tolerance * std::sqrt(alpha * beta))) continue;
      const Rotation r = orthogonalizing(alpha, beta, gamma);
      for (int64_t i = 0; i < 2 * stride; i += 8) {
#pragma GCC unroll 8
        for (int l = 0; l < 8; ++l) {
          const double xi = x[i + l], yi = y[i + l];
          // As small corrections, which round less than a cosine near 1 would.
          x[i + l] = xi - r.s * (yi + r.tau * xi);
          y[i + l] = yi + r.s * (xi - r.tau * yi);
        }
      }
      norm2[p] = alpha - r.t * gamma;
      norm2[q] = beta + r.t * gamma;
      rotated = true;
    }
  }
  return rotated;
}

}  // namespace

void JacobiColumns::start() {
  std::fill(data_.data(), data_.data() + 2 * n_ * stride_, 0.0);
  for (int j = 0; j < n_; ++j) v(j)[j] = 1.0;
}

double JacobiColumns::norm(int j) {
  return std::sqrt(dot_of(b(j), b(j), stride_));
}

void JacobiColumns::orthogonalize() {
  for (int i = 0; i < kMaxSweeps; ++i) {
    double largest = 0;
    for (int j = 0; j < n_; ++j) largest = std::max(largest, norm2_[j] = dot_of(b(j), b(j), stride_));
    // Columns that are rounding errors of the others have no direction.
    const double negligible = 2 * n_ * kUnit;
    if (!sweep_pairs(data_.data(), n_, stride_, norm2_.data(), 8 * kUnit * std::sqrt(double(n_)),
                     negligible * negligible * largest)) {
      return;
    }
  }
}

void symmetric_eigen(const double* a, JacobiColumns& work, double* values, double* vectors) {
  const int n = work.n();
  double shift = 0;
  for (int i = 0; i < n; ++i) {
    double others = 0;
    for (int j = 0; j < n; ++j) others += j == i ? 0.0 : std::abs(a[int64_t(i) * n + j]);
    shift = std::max(shift, others - a[int64_t(i) * n + i]);
  }
  work.start();
  for (int j = 0; j < n; ++j) {
    std::memcpy(work.b(j), a + int64_t(j) * n, size_t(n) * sizeof(double));
    work.b(j)[j] += shift;
  }
  work.orthogonalize();
  // Afresh from A: what the columns have gathered in rounding errors of the shift would make a zero eigenvalue look
  // like one. The error of an eigenvector enters squared.
  for (int j = 0; j < n; ++j) {
    double* vector = vectors + int64_t(j) * n;
    std::memcpy(vector, work.v(j), size_t(n) * sizeof(double));
    values[j] = quadratic_form(a, vector, n);
  }
}

}  // namespace vqdm::cpu
