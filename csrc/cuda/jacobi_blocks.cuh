// Jacobi's method for matrices that do not fit into shared memory: columns in blocks, a launch for each round of
// blocks.

#pragma once

#include "jacobi.cuh"
#include "jacobi_measure.cuh"
#include "reduce.cuh"

namespace vqdm::cuda {

static __global__ void start_blocks(JacobiWork w) {
  simt::SharedMemory memory;
  const auto partial = memory.take<double>(kMostWarps);
  const int64_t matrix = simt::block_index();
  double* columns = w.columns + matrix * 2 * w.n * w.n;
  double squares = 0;
  for (int at = simt::thread_index(); at < 2 * w.n * w.n; at += simt::block_size()) {
    const int j = at / (2 * w.n), i = at % (2 * w.n);
    if (i < w.n) {
      squares = fma(columns[at], columns[at], squares);
    } else {
      columns[at] = i - w.n == j ? 1 : 0;
    }
  }
  squares = block_sum(squares, partial);
  if (simt::thread_index() == 0) w.squares[matrix] = squares;
  for (int sweep = simt::thread_index(); sweep < kBlockSweeps; sweep += simt::block_size()) {
    w.rotations[matrix * kBlockSweeps + sweep] = 0;
  }
}

// The blocks that meet: two different ones, whose pairs across are rotated, or one, whose own pairs are.
struct Meeting {
  int p, q;
};
__device__ Meeting meeting_of(int blocks, int round, int k) {
  if (k < num_pairs(blocks, round)) {
    const Pair pair = pair_of(blocks, round, k);
    return {pair.p, pair.q};
  }
  k -= num_pairs(blocks, round);
  const int own = round % 2 == 0 ? round / 2 + k * (blocks / 2) : (round + blocks) / 2;
  return {own, own};
}

// Thread blocks of one matrix in a round: meetings of two, and of one.
__device__ __host__ int num_meetings(int blocks, int round) {
  if (blocks % 2 == 1) return (blocks + 1) / 2;
  return blocks / 2 + (round % 2 == 0 ? 1 : 0);
}

template <int kLanes, int kEach>
__global__ void __launch_bounds__(kMaxThreads, 1) block_round(JacobiWork w, int sweep, int round) {
  simt::SharedMemory memory;
  const int n = w.n, width = w.block_columns, blocks = (n + width - 1) / width;
  const auto columns = memory.take<double>(int64_t(2) * width * 2 * n);
  const int meetings = num_meetings(blocks, round);
  const int64_t matrix = simt::block_index() / meetings;
  unsigned* rotations = w.rotations + matrix * kBlockSweeps + sweep;
  if (sweep > 0 && rotations[-1] == 0) return;

  const Meeting meeting = meeting_of(blocks, round, int(simt::block_index() % meetings));
  const bool alone = meeting.p == meeting.q;
  const auto width_of = [&](int block) { return n - block * width < width ? n - block * width : width; };
  const int p_numbers = width_of(meeting.p) * 2 * n, q_numbers = alone ? 0 : width_of(meeting.q) * 2 * n;
  double* p_from = w.columns + (matrix * n + int64_t(meeting.p) * width) * 2 * n;
  double* q_from = w.columns + (matrix * n + int64_t(meeting.q) * width) * 2 * n;
  const auto q_columns = columns.from(int64_t(width) * 2 * n);
  for (int i = simt::thread_index(); i < p_numbers; i += simt::block_size()) columns[i] = p_from[i];
  for (int i = simt::thread_index(); i < q_numbers; i += simt::block_size()) q_columns[i] = q_from[i];
  simt::sync_threads();

  const Tolerance tolerance = tolerance_of(n, w.squares[matrix]);
  const int p_width = width_of(meeting.p), q_width = width_of(meeting.q);
  bool rotated = false;
  for (int s = 0; s < width; ++s) {
    const int pairs = alone ? num_pairs(width, s) : width;
    rotated = rotate_round<kLanes, kEach>(columns, n, pairs, tolerance,
                                          [&](int k) {
                                            if (alone) {
                                              const Pair pair = pair_of(width, s, k);
                                              return pair.q < p_width ? pair : Pair{-1, -1};
                                            }
                                            const int q = s < k ? s - k + width : s - k;
                                            return k < p_width && q < q_width ? Pair{k, width + q} : Pair{-1, -1};
                                          }) ||
              rotated;
    simt::sync_threads();
  }
  for (int i = simt::thread_index(); i < p_numbers; i += simt::block_size()) p_from[i] = columns[i];
  for (int i = simt::thread_index(); i < q_numbers; i += simt::block_size()) q_from[i] = q_columns[i];
  if (simt::any(rotated) && simt::lane_index() == 0) simt::atomic_max(rotations, 1u);
}

static __global__ void __launch_bounds__(kMaxThreads) measure_blocks(JacobiWork w) {
  simt::SharedMemory memory;
  const auto found = memory.take<double>(w.n);
  const auto partial = memory.take<double>(kMostWarps);
  const int64_t matrix = simt::block_index();
  const double* columns = w.columns + matrix * 2 * w.n * w.n;
  measure(w, matrix, found, partial, [&](int j, int i) { return columns[j * 2 * w.n + i]; });
}

}  // namespace vqdm::cuda
