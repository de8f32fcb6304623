// Lanes that share one vector of d numbers: how many, and what they do together.

#pragma once

#include <math.h>

#include "simt.cuh"

namespace vqdm::cuda {

__device__ inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

__device__ inline bool is_finite(double x) {
  return fabs(x) <= 1.7976931348623157e308;
}

// A power of two, such that a lane has about 16 numbers: few lanes leave little to add up across them.
__device__ inline int lanes_per_vector(int d) {
  int lanes = 2;
  while (lanes < 32 && lanes * 16 < d) lanes *= 2;
  return lanes;
}
template <typename T>
__device__ inline T sum_over(int lanes, T x) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) x += simt::shuffle_xor(x, mask);
  return x;
}
__device__ inline float max_over(int lanes, float x) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) x = fmaxf(x, simt::shuffle_xor(x, mask));
  return x;
}
__device__ inline bool all_over(int lanes, bool x) {
  const unsigned own = (lanes == 32 ? ~0u : (1u << lanes) - 1) << (simt::lane_index() / lanes * lanes);
  return (simt::ballot(x) & own) == own;
}

}  // namespace vqdm::cuda
