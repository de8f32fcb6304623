// Small loops over one row of float64 numbers, compiled for several instruction sets and chosen when the library loads.

#pragma once

#include <cstdint>

namespace vqdm::cpu {

bool all_finite(const double* x, int d);

// out = (x - centre) * scale; returns sum_j out_j^2 (in any order: it only feeds error bounds).
double centre_row(const double* x, const double* centre, double scale, int d, double* out);

// out[v][j] = (z_j - codes_v[j])^2 for four codes, each value rounded as written.
void squared_differences(const double* z, const float* const* codes, int d, double* out);

void widen(const float* x, int d, double* out);

}  // namespace vqdm::cpu
