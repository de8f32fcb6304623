// Exact distances of kPairs pairs at once, instantiated per instruction set (the interface: nearest_code_filter.h).
//
// The order of a sum is fixed, so one sum cannot be vectorised; the squares can, and so can the sums of several pairs:
// transposed, lane i holds the terms of pair i and one addition per j serves all.
//
// Doubles: Vec, a register of kLanes float64 numbers, with load (from float or double), sub, mul, add, store, zero and
// transpose (kLanes registers, in place).

#pragma once

#include <algorithm>

#include "nearest_code_filter.h"

namespace vqdm::cpu {
namespace {

template <class Doubles, class T>
[[gnu::always_inline]] inline void add_squares(const T* const* z, const T* const* e,
                                               typename Doubles::Vec (&sums)[kPairs / Doubles::kLanes]) {
  constexpr int L = Doubles::kLanes;
#pragma GCC unroll 8
  for (int g = 0; g < kPairs / L; ++g) {
    typename Doubles::Vec terms[L];
#pragma GCC unroll 8
    for (int i = 0; i < L; ++i) {
      const auto difference = Doubles::sub(Doubles::load(z[g * L + i]), Doubles::load(e[g * L + i]));
      terms[i] = Doubles::mul(difference, difference);
    }
    Doubles::transpose(terms);
#pragma GCC unroll 8
    for (int i = 0; i < L; ++i) sums[g] = Doubles::add(sums[g], terms[i]);
  }
}

template <class Doubles, class T>
void exact_distances(const T* const* z, const T* const* e, int d, double* out) {
  constexpr int L = Doubles::kLanes;
  typename Doubles::Vec sums[kPairs / L];
  for (auto& sum : sums) sum = Doubles::zero();
  const T *z_at[kPairs], *e_at[kPairs];
  int j = 0;
  for (; j + L <= d; j += L) {
    for (int i = 0; i < kPairs; ++i) z_at[i] = z[i] + j, e_at[i] = e[i] + j;
    add_squares<Doubles, T>(z_at, e_at, sums);
  }
  if (j < d) {  // padded with zeros on both sides, whose squares leave every sum as it is
    T z_tail[kPairs][L] = {}, e_tail[kPairs][L] = {};
    for (int i = 0; i < kPairs; ++i) {
      std::copy(z[i] + j, z[i] + d, z_tail[i]);
      std::copy(e[i] + j, e[i] + d, e_tail[i]);
      z_at[i] = z_tail[i], e_at[i] = e_tail[i];
    }
    add_squares<Doubles, T>(z_at, e_at, sums);
  }
  for (int g = 0; g < kPairs / L; ++g) Doubles::store(out + g * L, sums[g]);
}

}  // namespace
}  // namespace vqdm::cpu
