#include "pair_precision.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace vqdm::cpu {
namespace {

constexpr int64_t kSample = 256;  // rows, evenly spread, that stand for all

// Calls f(row) for the sample, as float64, and returns its size.
template <class F>
int64_t for_sample(const Matrix& x, int64_t N, int d, F&& f) {
  const int64_t count = std::min(N, kSample);
  std::vector<double> row(d);
  for (int64_t i = 0; i < count; ++i) {
    x.load(i * N / count, d, row.data());
    f(row);
  }
  return count;
}

double mean_square(const Matrix& x, int64_t N, int d, const std::vector<double>& centre) {
  double sum = 0;
  const int64_t count = for_sample(x, N, d, [&](const std::vector<double>& row) {
    for (int k = 0; k < d; ++k) sum += (row[k] - centre[k]) * (row[k] - centre[k]);
  });
  return sum / double(count);
}

// Whether any number is of 1e15 or more: the bits of magnitudes compare as they do, and NaN is the largest.
bool any_large(const Matrix& x, int64_t N, int d) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < N; ++i) {
    if (x.dtype == DType::kFloat32 && x.col_stride == 1) {
      const float* row = x.row<float>(i);
      for (int k = 0; k < d; ++k) {
        uint32_t bits;
        std::memcpy(&bits, row + k, sizeof bits);
        largest = std::max(largest, bits & 0x7fffffffu);
      }
    } else {
      x.with_row(i, [&](const auto* row) {
        for (int k = 0; k < d; ++k) {
          const auto number = float(double(row[k * x.col_stride]));
          uint32_t bits;
          std::memcpy(&bits, &number, sizeof bits);
          largest = std::max(largest, bits & 0x7fffffffu);
        }
      });
    }
  }
  return !(float_from_bits(largest) < 1e15f);
}

// Of the distance of pairs, about; 0 where float cannot hold the squares.
double typical_distance(const PairProblem& problem) {
  if (problem.N == 0 || problem.M == 0) return 0;
  if (any_large(problem.x, problem.N, problem.d) || any_large(problem.y, problem.M, problem.d)) return 0;
  std::vector<double> centre(problem.d, 0.0);
  const auto count = double(for_sample(problem.y, problem.M, problem.d, [&](const std::vector<double>& row) {
    for (int k = 0; k < problem.d; ++k) centre[k] += row[k];
  }));
  for (double& c : centre) c /= count;
  const double mean =
      mean_square(problem.x, problem.N, problem.d, centre) + mean_square(problem.y, problem.M, problem.d, centre);
  return mean > 1e-25 ? std::sqrt(mean) : 0;
}

}  // namespace

bool float_holds(const PairProblem& problem) {
  return typical_distance(problem) > 0;
}

bool float_suffices(const PairProblem& problem, double scale, bool squared) {
  const double distance = typical_distance(problem), typical = scale * (squared ? distance * distance : distance);
  return typical >= 0.25 && typical <= 512;
}

}  // namespace vqdm::cpu
