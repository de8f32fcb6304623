// Small loops over one row of float64 numbers, or over the rows of several pairs, instantiated per instruction set.

#pragma once

#include <cstdint>
#include <cstring>

namespace vqdm::cpu {

inline constexpr int kPairs = 8;  // exact distances computed together

// Buffers of centred numbers are this long, zeros behind the d-th: loops over them need no tail.
inline constexpr int64_t padded(int64_t d) {
  return (d + 7) / 8 * 8;
}

struct RowSize {
  double norm2;    // sum_j out_j^2, in any order: it only feeds error bounds
  double largest;  // max_j |out_j|; a NaN may pass unseen, and makes norm2 a NaN
};

struct RowMath {
  // out [padded(d)] = (x - centre) * scale for x [d], centre [padded(d)] with zeros behind d.
  RowSize (*centre_floats)(const float* x, const double* centre, double scale, int64_t d, double* out);
  RowSize (*centre_doubles)(const double* x, const double* centre, double scale, int64_t d, double* out);

  // out [padded(d)] = x [padded(d)] * unit, rounded to the nearest (to int16: |x * unit| < 2^15 - 1/2); returns
  // sum_j (x_j * unit - out_j)^2.
  double (*round_to_float)(const double* x, double unit, int64_t d, float* out);
  double (*round_to_int16)(const double* x, double unit, int64_t d, int16_t* out);

  // Of kPairs pairs: sums[i] = sum_j (z_i[j] - e_i[j])^2, j from left to right, no fused multiply-add.
  void (*float_distances)(const float* const* z, const float* const* e, int64_t d, double* sums);
  void (*double_distances)(const double* const* z, const double* const* e, int64_t d, double* sums);
};

inline bool all_finite(const double* x, int64_t d) {
  constexpr uint64_t kExponent = 0x7ff0000000000000u;  // all ones: NaN or Inf
  uint64_t found = 0;
  for (int64_t j = 0; j < d; ++j) {
    uint64_t bits;
    std::memcpy(&bits, &x[j], sizeof bits);
    found |= uint64_t((bits & kExponent) == kExponent);
  }
  return found == 0;
}

}  // namespace vqdm::cpu
