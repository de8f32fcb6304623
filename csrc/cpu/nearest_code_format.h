// How numbers become the words that a filter reads, and what that costs in precision.
//
// kFloat32: a word is one number, x * unit rounded; rows carry the -2 of the score in their unit.
// kInt16Pair: a word is two numbers, x * unit rounded to integers q. An int32 holds their dot products: with the bound
//   T = 46339 - sqrt(d) / 2 on ||x * unit||, which float64 keeps to far better than 1, and a rounding of at most 1/2
//   per element, ||q|| <= 46340 for rows and codes alike, so |q_x . q_e| <= 46340^2 < 2^31 - 1 by Cauchy-Schwarz.
//   (Partial sums may wrap: int32 addition is exact modulo 2^32, and so is the total.) Elements are kept to 32767 as
//   well.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "nearest_code_filter.h"

namespace vqdm::cpu {

class WordCoder {
 public:
  WordCoder(const NearestCodeFilter& filter, int d)
      : integers_(filter.format == WordFormat::kInt16Pair),
        rows_(filter.rows),
        d_(d),
        steps_(integers_ ? (int64_t(d) + 1) / 2 : d),
        inverse_norm_(1 / (46339 - 0.5 * std::sqrt(double(d)))) {}

  int64_t steps() const { return steps_; }  // words per row

  // 1 / unit. The floor keeps the unit, its inverse and the product of two of them inside float32: smaller numbers all
  // become zero.
  double inverse_code_unit(double norm, double largest) const { return integers_ ? integer_step(norm, largest) : 1.0; }
  double inverse_row_unit(double norm, double largest) const { return integers_ ? integer_step(norm, largest) : -0.5; }

  // out [steps() words, padded(d) numbers of room]: x [padded(d)] in words. Returns the sum of squares of what rounding
  // left of x * unit.
  double encode(const double* x, double unit, int32_t* out) const {
    return integers_ ? rows_.round_to_int16(x, unit, d_, reinterpret_cast<int16_t*>(out))
                     : rows_.round_to_float(x, unit, d_, reinterpret_cast<float*>(out));
  }

  // A bound on ||x - what its words stand for|| from that sum and ||x||: the products x * unit are themselves rounded
  // to 53 bits, and so is all this arithmetic.
  static double residual(double residual2, double inverse_unit, double norm) {
    return 1.001 * std::sqrt(residual2) * std::abs(inverse_unit) + 0x1p-50 * norm;
  }

  // Roundings of a score to 24 bits, each of at most the largest partial sum (or 2 ||x|| ||e||). kFloat32: one per
  // term, the bias packed, the bias added. kInt16Pair: the sum converted, the factor, their product and the bias, the
  // bias packed.
  double roundings() const { return integers_ ? 4.0 : double(d_) + 2; }

 private:
  double integer_step(double norm, double largest) const {
    return std::max({norm * inverse_norm_, largest * (1 / 32767.0), 0x1p-56});
  }

  const bool integers_;
  const RowMath& rows_;
  const int d_;
  const int64_t steps_;
  const double inverse_norm_;
};

}  // namespace vqdm::cpu
