// What a call of jacobi() works with, and how values are read off columns that have become orthogonal.

#pragma once

#include <math.h>

#include "jacobi.cuh"
#include "jacobi.h"
#include "reduce.cuh"

namespace vqdm::cuda {

inline constexpr int kMaxThreads = 512;

// Launched for matrices in blocks. Seen (an emulation at n = 20 .. 256, eigenvalues over up to 12 decades, repeated,
// zero, and the products of such roots): at most 16, of eigenvalues over 12 decades at n = 128 and 256; of ordinary
// ones 11.
inline constexpr int kBlockSweeps = 20;

struct JacobiWork : JacobiParams {
  int block_columns;    // of matrices in blocks
  double* squares;      // [matrices] squared Frobenius norms
  unsigned* rotations;  // [matrices, kBlockSweeps] 1 where a sweep found something to rotate
};

// Writes values, inverses and largest (see JacobiParams). `column(j, i)` is entry i of [b_j; v_j].
template <typename Column>
__device__ void measure(const JacobiWork& w, int64_t matrix, simt::Shared<double> found, simt::Shared<double> partial,
                        Column&& column) {
  const int n = w.n, lane = simt::lane_index(), warps = simt::block_size() / 32;
  const bool eigen = w.shift != nullptr;
  double most = 0;
  for (int j = simt::warp_index(); j < n; j += warps) {
    double sum = 0;
    for (int i = lane; i < n; i += 32) {
      const double b = column(j, i);
      sum = fma(b, eigen ? column(j, n + i) : b, sum);
    }
    sum = group_sum<32>(sum);
    const double value = eigen ? sum - w.shift[matrix] : sqrt(sum);
    if (lane == 0) found[j] = value > 0 ? value : 0;
    most = value > most ? value : most;
  }
  most = block_max(most, partial);
  const double scale = eigen ? w.root_scale[matrix] : 1;
  for (int j = simt::thread_index(); j < n; j += simt::block_size()) {
    const double x = found[j], value = eigen ? sqrt(x) * scale : x;
    w.values[matrix * n + j] = value;
    w.inverses[matrix * n + j] = x > n * kEpsilon * most ? 1 / value : 0;
  }
  if (simt::thread_index() == 0) w.largest[matrix] = eigen ? sqrt(most) * scale : most;
}

}  // namespace vqdm::cuda
