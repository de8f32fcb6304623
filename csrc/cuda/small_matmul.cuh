// Products of small square float64 matrices, many at once, whose entries are made as they are read and used as they are
// finished: sum_k left(i, k) right(k, j).
//
// A Problem gives, for the device:
//   int n; int64_t matrices;
//   double left(int64_t matrix, int i, int k) const;    kLeftAlongK:  consecutive in memory along k, not i
//   double right(int64_t matrix, int k, int j) const;   kRightAlongK: consecutive in memory along k, not j
//   void finish(int64_t matrix, int i, int j, double sum) const;
//   bool skips(int first_row, int first_col) const;     tiles whose entries nobody wants
//
// Sums go from k = 0 upwards with fused multiply-adds: an entry has the same bits whatever the tiles are.

#pragma once

#include <math.h>

#include "simt.cuh"

namespace vqdm::cuda {

inline constexpr int kMatmulTile = 32, kMatmulThreads = 256;

template <typename Problem>
__global__ void __launch_bounds__(kMatmulThreads) multiply(Problem problem) {
  constexpr int kPitch = kMatmulTile + 1, kHalf = kMatmulTile / 2;
  simt::SharedMemory memory;
  const auto left = memory.take<double>(kMatmulTile * kPitch);   // [i][k]
  const auto right = memory.take<double>(kMatmulTile * kPitch);  // [k][j]
  const int n = problem.n, tiles = (n + kMatmulTile - 1) / kMatmulTile;
  const int64_t matrix = simt::block_index() / (tiles * tiles);
  const int tile = int(simt::block_index() % (tiles * tiles));
  const int first_row = tile / tiles * kMatmulTile, first_col = tile % tiles * kMatmulTile;
  if (problem.skips(first_row, first_col)) return;

  const int t = simt::thread_index(), row = t / kHalf, col = t % kHalf;  // and kHalf further
  double sum[2][2] = {};
  for (int first_k = 0; first_k < n; first_k += kMatmulTile) {
    for (int e = t; e < kMatmulTile * kMatmulTile; e += kMatmulThreads) {
      const int fast = e % kMatmulTile, slow = e / kMatmulTile;
      {
        const int i = Problem::kLeftAlongK ? slow : fast, k = Problem::kLeftAlongK ? fast : slow;
        const bool there = first_row + i < n && first_k + k < n;
        left[i * kPitch + k] = there ? problem.left(matrix, first_row + i, first_k + k) : 0.0;
      }
      {
        const int j = Problem::kRightAlongK ? slow : fast, k = Problem::kRightAlongK ? fast : slow;
        const bool there = first_col + j < n && first_k + k < n;
        right[k * kPitch + j] = there ? problem.right(matrix, first_k + k, first_col + j) : 0.0;
      }
    }
    simt::sync_threads();
    const int steps = n - first_k < kMatmulTile ? n - first_k : kMatmulTile;
    for (int k = 0; k < steps; ++k) {
      const double a0 = left[row * kPitch + k], a1 = left[(row + kHalf) * kPitch + k];
      const double b0 = right[k * kPitch + col], b1 = right[k * kPitch + col + kHalf];
      sum[0][0] = fma(a0, b0, sum[0][0]);
      sum[0][1] = fma(a0, b1, sum[0][1]);
      sum[1][0] = fma(a1, b0, sum[1][0]);
      sum[1][1] = fma(a1, b1, sum[1][1]);
    }
    simt::sync_threads();
  }
#pragma unroll
  for (int a = 0; a < 2; ++a) {
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int i = first_row + row + a * kHalf, j = first_col + col + b * kHalf;
      if (i < n && j < n) problem.finish(matrix, i, j, sum[a][b]);
    }
  }
}

template <typename Problem>
cudaError_t multiply_all(const Problem& problem, cudaStream_t stream) {
  const int64_t tiles = (problem.n + kMatmulTile - 1) / kMatmulTile;
  const int shared_bytes = 2 * kMatmulTile * (kMatmulTile + 1) * int(sizeof(double));
  return simt::launch(multiply<Problem>, {problem.matrices * tiles * tiles, kMatmulThreads, shared_bytes}, stream,
                      problem);
}

}  // namespace vqdm::cuda
