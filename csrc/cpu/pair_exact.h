// The cost of one pair by its definition, and how far a cost in T may be from it.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "pair_costs.h"
#include "pair_scan.h"

namespace vqdm::cpu {

// Include it only where multiply-adds are not fused: the definition has none.
class ExactCost {
 public:
  ExactCost(const PairProblem& problem, bool squared)
      : problem_(problem), squared_(squared), x_(problem.d), y_(problem.d) {}

  double operator()(int64_t i, int64_t j) {
    if (i != row_) problem_.x.load(i, problem_.d, x_.data());
    row_ = i;
    problem_.y.load(j, problem_.d, y_.data());
    double D = 0;
    for (int k = 0; k < problem_.d; ++k) {
      const double difference = x_[k] - y_[k];
      D = D + difference * difference;
    }
    return squared_ ? D : std::sqrt(D);
  }

 private:
  const PairProblem& problem_;
  const bool squared_;
  std::vector<double> x_, y_;
  int64_t row_ = -1;
};

// A bound on |score + value - offset| of one row, for values less their noise and scores -bias - c in T. With u = half
// a unit in the last place of 1, norms rho of x and eps of y (both centred) and R = rho + eps:
//   centring rounds each number by u, the norms and the d products by (d + 4) u, each of at most R^2, so |D~ - D| <=
//   delta = (d + 10) u R^2; of the root, |D~ - D| / sqrt(D~), with D~ >= near = rho^2 / 100, or else sqrt(delta). Where
//   D~ was less, it is a sum of squared differences: (d + 5) u R, which is below both; and at least kTinyDistance. Then
//   the roundings of the root, the weight and the score, and those of float64 in the value itself.
template <class T>
double pair_error_bound(double norm, double largest_norm, double largest_weight, int d, bool squared) {
  constexpr double u = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
  const double R = norm + largest_norm, delta = 1.01 * (d + 10) * u * R * R;
  const double of_cost = squared ? delta : std::min(std::sqrt(delta), 10 * delta / norm);
  const double magnitude = (squared ? R * R : R) + largest_weight;
  const double tiny = kTinyDistance<T> * (squared ? 1 : 1 / std::sqrt(double(kTinyDistance<T>)));
  return tiny + 1.01 * of_cost + 8 * u * magnitude + (d + 8) * 0x1p-52 * magnitude + 1e-300;
}

}  // namespace vqdm::cpu
