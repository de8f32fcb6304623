// How numbers become the words that a filter reads, and what that costs in precision.
//
// kFloat32: a word is one number, x * unit rounded; rows carry the -2 of the score in their unit.
// kInt16Pair: a word is two numbers, x * unit rounded to integers q. An int32 holds their dot products: with the bound
//   T = 46339 - sqrt(d) / 2 on ||x * unit|| and a rounding of at most 1/2 per element, ||q|| <= 46339 + 2^-20 for rows
//   and codes alike, so |q_x . q_e| <= ||q_x|| ||q_e|| < 2^31 - 1 by Cauchy-Schwarz. (Partial sums may wrap: int32
//   addition is exact modulo 2^32, and so is the total.) Elements are kept to 32767 as well.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "nearest_code_filter.h"

namespace vqdm::cpu {

class WordCoder {
 public:
  WordCoder(const NearestCodeFilter& filter, int d) : format_(filter.format), rows_(filter.rows), d_(d) {}

  int64_t steps() const { return format_ == WordFormat::kInt16Pair ? (int64_t(d_) + 1) / 2 : d_; }

  double code_unit(double norm, double largest) const { return integers() ? integer_unit(norm, largest) : 1.0; }
  double row_unit(double norm, double largest) const { return integers() ? integer_unit(norm, largest) : -2.0; }

  // out [steps() words, padded(d) numbers of room]: x [padded(d)] in words. Returns sum_j (x_j * unit - what out stands
  // for)^2.
  double encode(const double* x, double unit, int32_t* out) const {
    return integers() ? rows_.round_to_int16(x, unit, d_, reinterpret_cast<int16_t*>(out))
                      : rows_.round_to_float(x, unit, d_, reinterpret_cast<float*>(out));
  }

  // A bound on ||x - what its words stand for|| from that sum, 1 / |unit| and ||x||: the products x * unit are
  // themselves rounded to 53 bits, and so is all this arithmetic.
  static double residual(double residual2, double inverse_unit, double norm) {
    return 1.001 * std::sqrt(residual2) * inverse_unit + 0x1p-50 * norm;
  }

  // Roundings of a score to 24 bits, each of at most the largest partial sum (or 2 ||x|| ||e||). kFloat32: one per
  // term, the bias packed, the bias added. kInt16Pair: the sum converted, the factor, their product and the bias, the
  // bias packed.
  double roundings() const { return integers() ? 4.0 : double(d_) + 2; }

 private:
  bool integers() const { return format_ == WordFormat::kInt16Pair; }
  // The floors keep the unit, its inverse and the product of two of them inside float32; what is smaller becomes zero.
  double integer_unit(double norm, double largest) const {
    return std::min((46339 - 0.5 * std::sqrt(double(d_))) / std::max(norm, 0x1p-40),
                    32767 / std::max(largest, 0x1p-40));
  }

  WordFormat format_;
  const RowMath& rows_;
  int d_;
};

}  // namespace vqdm::cpu
