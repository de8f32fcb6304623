// Sums and maxima over the threads of a warp and of a block: in a fixed order, with the same bits for every thread.

#pragma once

#include "simt.cuh"

namespace vqdm::cuda {

// Over groups of `width` lanes, a power of two.
template <int width>
__device__ double group_sum(double x) {
#pragma unroll
  for (int mask = width / 2; mask > 0; mask /= 2) x += simt::shuffle_xor(x, mask);
  return x;
}

__device__ inline double warp_max(double x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const double other = simt::shuffle_xor(x, mask);
    x = other > x ? other : x;
  }
  return x;
}

inline constexpr int kMostWarps = 32;

// `partial` holds kMostWarps numbers that no thread is using; none is using them afterwards.
__device__ inline double block_sum(double x, simt::Shared<double> partial) {
  x = group_sum<32>(x);
  if (simt::lane_index() == 0) partial[simt::warp_index()] = x;
  simt::sync_threads();
  double sum = 0;
  for (int w = 0; w < simt::block_size() / 32; ++w) sum += partial[w];
  simt::sync_threads();
  return sum;
}

__device__ inline double block_max(double x, simt::Shared<double> partial) {  // of numbers >= 0
  x = warp_max(x);
  if (simt::lane_index() == 0) partial[simt::warp_index()] = x;
  simt::sync_threads();
  double most = 0;
  for (int w = 0; w < simt::block_size() / 32; ++w) {
    const double other = partial[w];
    most = other > most ? other : most;
  }
  simt::sync_threads();
  return most;
}

}  // namespace vqdm::cuda
