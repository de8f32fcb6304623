#include "polar.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "clones.h"

namespace vqdm::cpu {
namespace {

constexpr int kMaxSteps = 30;

// By Gauss-Jordan elimination with row pivots, in place.
VQDM_CLONES bool invert(int n, double* a, int* pivots) {
  for (int k = 0; k < n; ++k) {
    int pivot = k;
    for (int i = k + 1; i < n; ++i) {
      if (std::abs(a[int64_t(i) * n + k]) > std::abs(a[int64_t(pivot) * n + k])) pivot = i;
    }
    pivots[k] = pivot;
    double* row = a + int64_t(k) * n;
    if (pivot != k) std::swap_ranges(row, row + n, a + int64_t(pivot) * n);
    if (!(std::abs(row[k]) > 0)) return false;
    const double inverse = 1 / row[k];
    row[k] = 1;
    for (int j = 0; j < n; ++j) row[j] *= inverse;
    for (int i = 0; i < n; ++i) {
      if (i == k) continue;
      double* other = a + int64_t(i) * n;
      const double factor = other[k];
      other[k] = 0;
      for (int j = 0; j < n; ++j) other[j] -= factor * row[j];
    }
  }
  for (int k = n - 1; k >= 0; --k) {
    if (pivots[k] == k) continue;
    for (int i = 0; i < n; ++i) std::swap(a[int64_t(i) * n + k], a[int64_t(i) * n + pivots[k]]);
  }
  return true;
}

// |A|_1 |A|_inf: the largest sums of magnitudes of a column and of a row.
double norms(int n, const double* a, std::vector<double>& columns) {
  std::fill(columns.begin(), columns.end(), 0.0);
  double largest_row = 0;
  for (int i = 0; i < n; ++i) {
    double row = 0;
    for (int j = 0; j < n; ++j) {
      const double x = std::abs(a[int64_t(i) * n + j]);
      row += x;
      columns[j] += x;
    }
    largest_row = std::max(largest_row, row);
  }
  return largest_row * *std::max_element(columns.begin(), columns.end());
}

}  // namespace

bool polar_factor(int n, double* m) {
  const int64_t numbers = int64_t(n) * n;
  std::vector<double> inverse(numbers), columns(n);
  std::vector<int> pivots(n);
  double change = 1;
  for (int step = 0; step < kMaxSteps; ++step) {
    std::copy(m, m + numbers, inverse.begin());
    if (!invert(n, inverse.data(), pivots.data())) return false;
    // Near the end the scale is 1, but for rounding.
    const double scale = change < 1e-2 ? 1.0 : std::pow(norms(n, inverse.data(), columns) / norms(n, m, columns), 0.25);
    double moved = 0;
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        const double x = m[int64_t(i) * n + j];
        const double next = (scale * x + inverse[int64_t(j) * n + i] / scale) / 2;
        moved += (next - x) * (next - x);
        m[int64_t(i) * n + j] = next;
      }
    }
    change = std::sqrt(moved / n);
    // The error after a step is about half the square of the change that led to it.
    if (change < 1e-8) return true;
    if (!(change < 1e300)) return false;
  }
  return false;
}

}  // namespace vqdm::cpu
