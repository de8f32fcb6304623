// The loops of RowMath, written once.
//
// Doubles: Vec, a register of kLanes float64 numbers, with load (from float or double), store, store_rounded (to float
// or int16; returns what it stored), broadcast, sub, mul, add, max, abs, sum and
// largest (over the lanes), and transpose (kLanes registers, in place).

#pragma once

#include <algorithm>

#include "row_math.h"

namespace vqdm::cpu {

// The anonymous namespace keeps the linker from merging, say, an AVX-512 copy into the portable kernel.
namespace {

template <class Doubles, class T>
RowSize centre_row(const T* x, const double* centre, double scale, int64_t d, double* out) {
  constexpr int L = Doubles::kLanes;
  const auto factor = Doubles::broadcast(scale);
  auto norm2 = Doubles::broadcast(0.0), largest = norm2;
  const auto step = [&](const T* from, int64_t j) {
    const auto value = Doubles::mul(Doubles::sub(Doubles::load(from), Doubles::load(centre + j)), factor);
    Doubles::store(out + j, value);
    norm2 = Doubles::add(norm2, Doubles::mul(value, value));
    largest = Doubles::max(Doubles::abs(value), largest);
  };
  int64_t j = 0;
  for (; j + L <= d; j += L) step(x + j, j);
  if (j < d) {
    T tail[L] = {};
    std::copy(x + j, x + d, tail);
    step(tail, j);
    j += L;
  }
  for (; j < padded(d); ++j) out[j] = 0.0;
  return {Doubles::sum(norm2), Doubles::largest(largest)};
}

template <class Doubles, class T>
double round_row(const double* x, double unit, int64_t d, T* out) {
  const auto factor = Doubles::broadcast(unit);
  auto sum = Doubles::broadcast(0.0);
  for (int64_t j = 0; j < padded(d); j += Doubles::kLanes) {
    const auto value = Doubles::mul(Doubles::load(x + j), factor);
    const auto residual = Doubles::sub(value, Doubles::store_rounded(out + j, value));
    sum = Doubles::add(sum, Doubles::mul(residual, residual));
  }
  return Doubles::sum(sum);
}

// The order of a sum is fixed, so one sum cannot be vectorised; the squares can, and so can the sums of several pairs:
// transposed, lane i holds the terms of pair i, and one addition per j serves all.
template <class Doubles, class T>
[[gnu::always_inline]] inline void add_squares(const T* const* z, const T* const* e, int64_t j,
                                               typename Doubles::Vec (&sums)[kPairs / Doubles::kLanes]) {
  constexpr int L = Doubles::kLanes;
#pragma GCC unroll 8
  for (int g = 0; g < kPairs / L; ++g) {
    typename Doubles::Vec terms[L];
#pragma GCC unroll 8
    for (int i = 0; i < L; ++i) {
      const auto difference = Doubles::sub(Doubles::load(z[g * L + i] + j), Doubles::load(e[g * L + i] + j));
      terms[i] = Doubles::mul(difference, difference);
    }
    Doubles::transpose(terms);
#pragma GCC unroll 8
    for (int i = 0; i < L; ++i) sums[g] = Doubles::add(sums[g], terms[i]);
  }
}

template <class Doubles, class T>
void exact_distances(const T* const* z, const T* const* e, int64_t d, double* out) {
  constexpr int L = Doubles::kLanes;
  typename Doubles::Vec sums[kPairs / L];
#pragma GCC unroll 8
  for (int g = 0; g < kPairs / L; ++g) sums[g] = Doubles::broadcast(0.0);
  int64_t j = 0;
  for (; j + L <= d; j += L) add_squares<Doubles, T>(z, e, j, sums);
  if (j < d) {  // padded with zeros on both sides, whose squares leave every sum as it is
    T z_tails[kPairs][L] = {}, e_tails[kPairs][L] = {};
    const T *z_tail[kPairs], *e_tail[kPairs];
    for (int i = 0; i < kPairs; ++i) {
      std::copy(z[i] + j, z[i] + d, z_tails[i]);
      std::copy(e[i] + j, e[i] + d, e_tails[i]);
      z_tail[i] = z_tails[i], e_tail[i] = e_tails[i];
    }
    add_squares<Doubles, T>(z_tail, e_tail, 0, sums);
  }
#pragma GCC unroll 8
  for (int g = 0; g < kPairs / L; ++g) Doubles::store(out + g * L, sums[g]);
}

template <class Doubles>
constexpr RowMath kRowMath = {centre_row<Doubles, float>,      centre_row<Doubles, double>,
                              round_row<Doubles, float>,       round_row<Doubles, int16_t>,
                              exact_distances<Doubles, float>, exact_distances<Doubles, double>};

}  // namespace
}  // namespace vqdm::cpu
