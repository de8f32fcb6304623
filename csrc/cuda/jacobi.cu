#include <math.h>

#include <algorithm>

#include "jacobi.cuh"
#include "jacobi.h"
#include "reduce.cuh"

namespace vqdm::cuda {
namespace {

constexpr int kMaxThreads = 512;
// Of a whole matrix in shared memory: bounds the loop. Seen: at most 14 (n = 118, eigenvalues over 12 decades).
constexpr int kMaxSweeps = 30;
// Launched for matrices in blocks. Seen (an emulation at n = 20 .. 256, eigenvalues over up to 12 decades, repeated,
// zero, and the products of such roots): at most 16, of eigenvalues over 12 decades at n = 128 and 256; of ordinary
// ones 11.
constexpr int kBlockSweeps = 20;
constexpr int kBlockColumns = 16;  // fewer where two blocks do not fit

struct Work : JacobiParams {
  int block_columns;    // of matrices in blocks
  double* squares;      // [matrices] squared Frobenius norms
  unsigned* rotations;  // [matrices, kBlockSweeps] 1 where a sweep found something to rotate
};

// Squared norms of the columns and what follows from them. `column(j, i)` is entry i of [b_j; v_j].
template <typename Column>
__device__ void measure(const Work& w, int64_t matrix, simt::Shared<double> found, simt::Shared<double> partial,
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

// ---- blocks of columns ----

__global__ void start_blocks(Work w) {
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
__global__ void __launch_bounds__(kMaxThreads, 1) block_round(Work w, int sweep, int round) {
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

__global__ void __launch_bounds__(kMaxThreads) measure_blocks(Work w) {
  simt::SharedMemory memory;
  const auto found = memory.take<double>(w.n);
  const auto partial = memory.take<double>(kMostWarps);
  const int64_t matrix = simt::block_index();
  const double* columns = w.columns + matrix * 2 * w.n * w.n;
  measure(w, matrix, found, partial, [&](int j, int i) { return columns[j * 2 * w.n + i]; });
}

// ---- the host ----

int whole_bytes(int n) {
  return int(sizeof(double)) * (2 * n * n + (n + 1) / 2 * 2 + kMostWarps);
}

int threads_for(int pairs, int lanes) {
  return std::min((pairs * lanes + 31) / 32 * 32, kMaxThreads);
}

template <int kLanes, int kEach>
cudaError_t enqueue(const Work& w, cudaStream_t stream) {
  const int n = w.n;
  if (whole_bytes(n) <= simt::max_shared_bytes()) {
    const int threads = std::max(threads_for(n / 2, kLanes), 32);
    return simt::launch(whole_matrix<kLanes, kEach>, {w.matrices, threads, whole_bytes(n)}, stream, w);
  }
  const int column_bytes = 2 * n * int(sizeof(double)), partial_bytes = kMostWarps * int(sizeof(double));
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
  return enqueue<32, 8>(w, stream);
}

}  // namespace vqdm::cuda
