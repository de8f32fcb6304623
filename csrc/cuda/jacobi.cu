#include <algorithm>

#include "jacobi.cuh"
#include "jacobi.h"
#include "jacobi_blocks.cuh"
#include "jacobi_measure.cuh"
#include "reduce.cuh"

namespace vqdm::cuda {
namespace {

using Work = JacobiWork;

// Of a whole matrix in shared memory: bounds the loop. Seen: at most 14 (n = 118, eigenvalues over 12 decades).
constexpr int kMaxSweeps = 30;
constexpr int kBlockColumns = 16;  // fewer where two blocks do not fit

// ---- a whole matrix in shared memory ----

template <int kLanes, int kEach>
__global__ void __launch_bounds__(kMaxThreads, 1) whole_matrix(Work w) {
  simt::SharedMemory memory;
  const int n = w.n, threads = simt::block_size();
  const auto columns = memory.take<double>(2 * n * n);
  const auto found = memory.take<double>(n);
  const auto partial = memory.take<double>(kMostWarps);
  const int64_t matrix = simt::block_index();
  double* out = w.columns + matrix * 2 * n * n;

  double squares = 0;
  for (int at = simt::thread_index(); at < 2 * n * n; at += threads) {
    const int j = at / (2 * n), i = at % (2 * n);
    const double x = i < n ? out[at] : i - n == j ? 1.0 : 0.0;
    columns[at] = x;
    if (i < n) squares = fma(x, x, squares);
  }
  const Tolerance tolerance = tolerance_of(n, block_sum(squares, partial));
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    bool rotated = false;
    for (int s = 0; s < n; ++s) {
      rotated = rotate_round<kLanes, kEach>(columns, n, num_pairs(n, s), tolerance,
                                            [&](int k) { return pair_of(n, s, k); }) ||
                rotated;
      simt::sync_threads();
    }
    if (block_max(rotated ? 1 : 0, partial) == 0) break;
  }
  for (int at = simt::thread_index(); at < 2 * n * n; at += threads) out[at] = columns[at];
  measure(w, matrix, found, partial, [&](int j, int i) { return double(columns[j * 2 * n + i]); });
}

// ---- the host ----

constexpr int whole_bytes(int n) {
  return int(sizeof(double)) * (2 * n * n + (n + 1) / 2 * 2 + kMostWarps);
}

constexpr bool always_whole(int n) {
  return whole_bytes(n) <= 48 << 10;  // which a block has on every device
}

int threads_for(int pairs, int lanes) {
  return std::min((pairs * lanes + 31) / 32 * 32, kMaxThreads);
}

template <int kLanes, int kEach>
cudaError_t enqueue_blocks(const Work& w, cudaStream_t stream) {
  const int n = w.n, column_bytes = 2 * n * int(sizeof(double)), partial_bytes = kMostWarps * int(sizeof(double));
  cudaError_t error = simt::launch(start_blocks, {w.matrices, kMaxThreads, partial_bytes}, stream, w);
  const int width = w.block_columns, blocks = (n + width - 1) / width;
  for (int sweep = 0; sweep < kBlockSweeps; ++sweep) {
    for (int round = 0; round < blocks; ++round) {
      const simt::LaunchShape shape{w.matrices * num_meetings(blocks, round), threads_for(width, kLanes),
                                    2 * width * column_bytes};
      if (error == cudaSuccess) error = simt::launch(block_round<kLanes, kEach>, shape, stream, w, sweep, round);
    }
  }
  const simt::LaunchShape shape{w.matrices, kMaxThreads, (n + 1) / 2 * 2 * int(sizeof(double)) + partial_bytes};
  if (error == cudaSuccess) error = simt::launch(measure_blocks, shape, stream, w);
  return error;
}

template <int kLanes, int kEach>
cudaError_t enqueue(const Work& w, cudaStream_t stream) {
  const int n = w.n;
  if constexpr (!always_whole(kLanes * kEach)) {
    if (whole_bytes(n) > simt::max_shared_bytes()) return enqueue_blocks<kLanes, kEach>(w, stream);
  }
  const int threads = std::max(threads_for(n / 2, kLanes), 32);
  return simt::launch(whole_matrix<kLanes, kEach>, {w.matrices, threads, whole_bytes(n)}, stream, w);
}

int64_t rotations_start(const JacobiParams& params) {
  return (params.matrices * int64_t(sizeof(double)) + 15) / 16 * 16;
}

}  // namespace

int64_t jacobi_workspace_bytes(const JacobiParams& params) {
  return rotations_start(params) + params.matrices * kBlockSweeps * int64_t(sizeof(unsigned));
}

cudaError_t jacobi(const JacobiParams& params, void* workspace, cudaStream_t stream) {
  Work w{};
  static_cast<JacobiParams&>(w) = params;
  w.squares = static_cast<double*>(workspace);
  w.rotations = reinterpret_cast<unsigned*>(static_cast<char*>(workspace) + rotations_start(params));
  w.block_columns = kBlockColumns;
  while (w.block_columns > 1 && 4 * w.block_columns * w.n * int(sizeof(double)) > simt::max_shared_bytes()) {
    w.block_columns /= 2;
  }
  // Half a warp on a pair: two pairs of a round go on side by side while sums travel between lanes, and a column of
  // shared memory is read without conflicts.
  if (w.n <= 8) return enqueue<8, 1>(w, stream);
  if (w.n <= 32) return enqueue<16, 2>(w, stream);
  if (w.n <= 64) return enqueue<16, 4>(w, stream);
  if (w.n <= 128) return enqueue<32, 4>(w, stream);
  return enqueue_blocks<32, 8>(w, stream);  // more than 256 KB
}

}  // namespace vqdm::cuda
