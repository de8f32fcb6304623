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
#include "row_math.h"

namespace vqdm::cpu {

class WordCoder {
 public:
  WordCoder(WordFormat format, int d) : format_(format), d_(d) {}

  int64_t steps() const { return format_ == WordFormat::kInt16Pair ? (int64_t(d_) + 1) / 2 : d_; }

  double code_unit(double norm, double largest) const { return integers() ? integer_unit(norm, largest) : 1.0; }
  double row_unit(double norm, double largest) const { return integers() ? integer_unit(norm, largest) : -2.0; }

  // Writes the words of x [d], `stride` apart. Returns a bound on ||x - what the words stand for||, given ||x|| <=
  // norm.
  double encode(const double* x, double unit, double norm, int32_t* words, int64_t stride, int32_t* scratch) const;

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
  int d_;
};

}  // namespace vqdm::cpu
