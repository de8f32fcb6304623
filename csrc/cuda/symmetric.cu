#include <math.h>

#include <limits>

#include "operand.cuh"
#include "reduce.cuh"
#include "symmetric.h"

namespace vqdm::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr double kLargestFinite = std::numeric_limits<double>::max();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// One block per matrix, one warp per column, and each lane comes back to the entries that it wrote itself.
__global__ void load_columns(SymmetricParams p) {
  simt::SharedMemory memory;
  const auto partial = memory.take<double>(kMostWarps);
  const int64_t matrix = simt::block_index(), heads = simt::num_blocks() / p.sides;
  const Operand& a = p.a[matrix / heads];
  const int64_t start = head_offset(p.heads, a, matrix % heads);
  const int n = p.n, lane = simt::lane_index();
  double* columns = p.columns + matrix * n * 2 * n;

  double most = 0;
  bool finite = true;
  for (int j = simt::warp_index(); j < n; j += kWarps) {
    for (int i = lane; i < n; i += 32) {
      const double s = load(a, start + i * a.row_stride + j * a.col_stride) / 2 +
                       load(a, start + j * a.row_stride + i * a.col_stride) / 2;
      columns[int64_t(j) * 2 * n + i] = s;
      finite = finite && fabs(s) <= kLargestFinite;
      most = fabs(s) > most ? fabs(s) : most;
    }
  }
  finite = block_max(finite ? 0 : 1, partial) == 0;
  most = block_max(finite ? most : 0, partial);

  int exponent = 0;
  frexp(most, &exponent);                                // most = f 2^exponent, 1/2 <= f < 1
  int k = (exponent + (exponent > 0 ? 1 : 0)) / 2;       // half of it, rounded up
  k = k < -510 ? -510 : k;                               // 4^-k is finite
  const double scale = finite ? ldexp(1.0, -2 * k) : 0;  // exact, though subnormal for the largest

  double below = 0;  // how far Gershgorin's circles reach below zero
  for (int j = simt::warp_index(); j < n; j += kWarps) {
    double sum = 0;
    for (int i = lane; i < n; i += 32) {
      double& b = columns[int64_t(j) * 2 * n + i];
      b = finite ? b * scale : 0;
      sum += i == j ? -b : fabs(b);
    }
    sum = group_sum<32>(sum);
    below = sum > below ? sum : below;
  }
  const double shift = block_max(below, partial);
  for (int j = simt::warp_index(); j < n; j += kWarps) {
    if (lane == j % 32) columns[int64_t(j) * 2 * n + j] += shift;
  }
  if (simt::thread_index() == 0) {
    p.shift[matrix] = shift;
    p.root_scale[matrix] = finite ? ldexp(1.0, k) : kNaN;
  }
}

}  // namespace

cudaError_t load_symmetric(const SymmetricParams& params, cudaStream_t stream) {
  const simt::LaunchShape shape{params.heads.count() * params.sides, kThreads, kMostWarps * int(sizeof(double))};
  return simt::launch(load_columns, shape, stream, params);
}

}  // namespace vqdm::cuda
