// Small loops over one row of numbers, compiled for several instruction sets and chosen when the library loads.

#pragma once

#include <cstdint>

namespace vqdm::cpu {

bool all_finite(const double* x, int d);

void widen(const float* x, int d, double* out);

// sum += x
void accumulate(const double* x, int d, double* sum);

struct RowSize {
  double norm2;    // sum_j out_j^2, in any order: it only feeds error bounds
  double largest;  // max_j |out_j|; a NaN may pass unseen, and makes norm2 a NaN
};

// out = (x - centre) * scale
RowSize centre_row(const double* x, const double* centre, double scale, int d, double* out);
RowSize centre_row(const float* x, const double* centre, double scale, int d, double* out);

// out = x * unit rounded to float32 or int16 (|x * unit| < 2^15 - 1/2); returns sum_j (x_j * unit - out_j)^2.
double round_to_float(const double* x, double unit, int d, float* out);
double round_to_int16(const double* x, double unit, int d, int16_t* out);

}  // namespace vqdm::cpu
