#include <math.h>

#include <algorithm>

#include "moments.h"
#include "simt.cuh"
#include "workspace.h"

namespace vqdm::cuda {
namespace {

constexpr int kRows = 64;    // of a block
constexpr int kEdge = 4;     // each thread sums kEdge x kEdge products
constexpr int kTasks = 512;  // thread blocks, about: four for each multiprocessor of an H200
constexpr int kMergeThreads = 256;

struct Work : MomentsParams {
  int tiles;       // of columns
  int64_t chunks;  // of rows
  int64_t chunk_rows;
  bool rows_fast;   // consecutive in memory
  double* centres;  // [chunks, d] of a chunk's first block
  double* shifts;   // [chunks, d] of a chunk's mean from there
  double* partial;  // [chunks, d, d] scatters, the upper triangle of tiles
};

template <typename T>
struct alignas(16) Four {
  T x[kEdge];
};

__device__ __host__ int64_t num_tile_pairs(int64_t tiles) {
  return tiles * (tiles + 1) / 2;
}

constexpr int threads_of(int tile) {
  return tile / kEdge * (tile / kEdge);
}

// Where a thread block works: on tiles of columns I <= J, which are the two halves of its columns (where they are one
// tile, the first half is all there is), and on one block of rows after the other.
template <typename T, int kTile>
struct Tiles {
  static constexpr int kThreads = threads_of(kTile), kColumns = 2 * kTile, kParts = kThreads / kColumns;
  static_assert(kThreads == kParts * kColumns, "a column is shared out over kParts threads, which have no other");
  int I, J;
  simt::Shared<T> rows;         // [2, kRows, kTile]
  simt::Shared<double> sums;    // [kParts, kColumns]
  simt::Shared<double> origin;  // [kColumns] the centre of the chunk's first block
  simt::Shared<double> mean;    // [kColumns] of the rows so far, from there
  simt::Shared<double> error;   // [kColumns] of this block's centre
  simt::Shared<double> delta;   // [kColumns] this block's mean less that of the rows before

  static int shared_bytes() { return int(2 * kRows * kTile * sizeof(T) + (kParts + 4) * kColumns * sizeof(double)); }

  __device__ void load_rows(const Work& w, int64_t first_row, int num_rows) const {
    const T* x = static_cast<const T*>(w.x.data);
    const int numbers = (I == J ? 1 : 2) * kRows * kTile;
    for (int e = simt::thread_index(); e < numbers; e += kThreads) {
      const int half = e / (kRows * kTile), rest = e % (kRows * kTile);
      const int row = w.rows_fast ? rest % kRows : rest / kTile, column = w.rows_fast ? rest / kRows : rest % kTile;
      const int global = (half == 0 ? I : J) * kTile + column;
      const bool there = row < num_rows && global < w.d;
      rows[(half * kRows + row) * kTile + column] =
          there ? x[(first_row + row) * w.x.row_stride + global * w.x.col_stride] : T(0);
    }
  }

  // Takes the centre off the rows, and finds error, delta and the new mean. `before` rows came before this block.
  __device__ void centre_rows(int64_t before, int num_rows) const {
    const int column = simt::thread_index() % kColumns, part = simt::thread_index() / kColumns;
    const bool there = column < kTile || I != J;
    const auto x = rows.from((column / kTile) * kRows * kTile + column % kTile);
    const int first = part * (kRows / kParts), end = first + kRows / kParts;
    const auto sum_of_parts = [&] {
      double sum = 0;
      for (int p = 0; p < kParts; ++p) sum += sums[p * kColumns + column];
      return sum;
    };
    double sum = 0;
    for (int r = first; there && r < end; ++r) sum += double(x[r * kTile]);  // zeros from num_rows on
    sums[part * kColumns + column] = sum;
    simt::sync_threads();
    const double block_mean = sum_of_parts() / num_rows;
    const T centre = T(block_mean);
    // For float32, that is all: rounding of the centred rows would tell less. For float64 it has been rounded itself.
    constexpr bool kAgain = sizeof(T) == sizeof(double);
    if (kAgain) simt::sync_threads();  // before `sums` is written anew
    sum = 0;
    for (int r = first; there && r < (end < num_rows ? end : num_rows); ++r) {
      const T e = x[r * kTile] - centre;
      x[r * kTile] = e;
      if (kAgain) sum += double(e);
    }
    if (kAgain) {
      sums[part * kColumns + column] = sum;
      simt::sync_threads();
    }
    if (part == 0) {
      if (before == 0) origin[column] = double(centre);
      const double own = kAgain ? sum_of_parts() / num_rows : block_mean - double(centre);
      const double so_far = before == 0 ? 0 : double(mean[column]);
      const double apart = (double(centre) - origin[column]) + own - so_far;
      error[column] = own;
      delta[column] = apart;
      mean[column] = so_far + apart * num_rows / double(before + num_rows);
    }
    simt::sync_threads();
  }
};

// One thread block per pair of tiles and chunk.
template <typename T, int kTile>
__global__ void __launch_bounds__(threads_of(kTile)) sum_chunk(Work w) {
  constexpr int kSide = kTile / kEdge;
  simt::SharedMemory memory;
  Tiles<T, kTile> tiles;
  tiles.rows = memory.take<T>(2 * kRows * kTile);
  tiles.sums = memory.take<double>(tiles.kParts * tiles.kColumns);
  tiles.origin = memory.take<double>(tiles.kColumns);
  tiles.mean = memory.take<double>(tiles.kColumns);
  tiles.error = memory.take<double>(tiles.kColumns);
  tiles.delta = memory.take<double>(tiles.kColumns);
  const int64_t chunk = simt::block_index() % w.chunks;
  int I = 0, J = int(simt::block_index() / w.chunks);
  while (J >= w.tiles - I) J -= w.tiles - I++;
  J += I;
  tiles.I = I;
  tiles.J = J;

  const int ty = simt::thread_index() / kSide, tx = simt::thread_index() % kSide;
  const int right = I == J ? 0 : kTile;  // where columns of J begin
  const auto a_rows = tiles.rows.template as<Four<T>>();
  const auto b_rows = tiles.rows.from(I == J ? 0 : kRows * kTile).template as<Four<T>>();
  double total[kEdge][kEdge] = {};
  const int64_t first = chunk * w.chunk_rows, last = first + w.chunk_rows < w.N ? first + w.chunk_rows : w.N;
  for (int64_t row = first; row < last; row += kRows) {
    const int num_rows = last - row < kRows ? int(last - row) : kRows;
    const int64_t before = row - first;
    tiles.load_rows(w, row, num_rows);
    simt::sync_threads();
    tiles.centre_rows(before, num_rows);
    T sum[kEdge][kEdge] = {};
    for (int r = 0; r < num_rows; ++r) {
      const Four<T> a = a_rows[r * kSide + ty], b = b_rows[r * kSide + tx];
#pragma unroll
      for (int i = 0; i < kEdge; ++i) {
#pragma unroll
        for (int j = 0; j < kEdge; ++j) sum[i][j] = fma(a.x[i], b.x[j], sum[i][j]);
      }
    }
    const double between = double(before) * num_rows / double(before + num_rows);
#pragma unroll
    for (int i = 0; i < kEdge; ++i) {
      const int left_column = ty * kEdge + i;
      const double left_error = num_rows * tiles.error[left_column], left_delta = between * tiles.delta[left_column];
#pragma unroll
      for (int j = 0; j < kEdge; ++j) {
        const int right_column = right + tx * kEdge + j;
        total[i][j] += double(sum[i][j]) - left_error * tiles.error[right_column];
        total[i][j] = fma(left_delta, tiles.delta[right_column], total[i][j]);
      }
    }
    simt::sync_threads();
  }
  const int64_t d = w.d;
#pragma unroll
  for (int i = 0; i < kEdge; ++i) {
#pragma unroll
    for (int j = 0; j < kEdge; ++j) {
      const int row = I * kTile + ty * kEdge + i, column = J * kTile + tx * kEdge + j;
      if (row < d && column < d) w.partial[(chunk * d + row) * d + column] = total[i][j];
    }
  }
  if (I != J) return;
  for (int column = simt::thread_index(); column < kTile && I * kTile + column < d; column += tiles.kThreads) {
    w.centres[chunk * d + I * kTile + column] = tiles.origin[column];
    w.shifts[chunk * d + I * kTile + column] = tiles.mean[column];
  }
}

// One thread per entry of the upper triangle; those of the diagonal write the mean.
__global__ void merge_chunks(Work w) {
  const int64_t d = w.d, e = simt::block_index() * kMergeThreads + simt::thread_index();
  const int64_t i = e / d, j = e % d;
  if (i > j || i >= d) return;
  double mean_i = 0, mean_j = 0, scatter = 0;
  const double origin_i = w.chunks > 0 ? w.centres[i] : 0, origin_j = w.chunks > 0 ? w.centres[j] : 0;
#pragma unroll 4
  for (int64_t chunk = 0; chunk < w.chunks; ++chunk) {
    const double before = double(chunk * w.chunk_rows);
    const double rows = double(chunk + 1 < w.chunks ? w.chunk_rows : w.N - chunk * w.chunk_rows);
    const double share = rows / (before + rows);
    const double apart_i = (w.centres[chunk * d + i] - origin_i) + w.shifts[chunk * d + i] - mean_i;
    const double apart_j = (w.centres[chunk * d + j] - origin_j) + w.shifts[chunk * d + j] - mean_j;
    scatter += w.partial[(chunk * d + i) * d + j] + apart_i * apart_j * (before * share);
    mean_i += apart_i * share;
    mean_j += apart_j * share;
  }
  w.cov[i * d + j] = w.cov[j * d + i] = scatter / w.divisor;
  if (i == j) w.mean[i] = origin_i + mean_i;
}

int64_t up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

int64_t magnitude(int64_t stride) {
  return stride < 0 ? -stride : stride;
}

constexpr int kSmallTile = 32, kLargeTile = 64;

int tile_of(int d) {
  return d <= kSmallTile ? kSmallTile : kLargeTile;
}

Work work_of(const MomentsParams& params, void* memory, int64_t& bytes) {
  Work w{};
  static_cast<MomentsParams&>(w) = params;
  w.tiles = int(up(params.d, tile_of(params.d)));
  w.rows_fast = magnitude(params.x.row_stride) < magnitude(params.x.col_stride);
  const int64_t blocks = up(params.N, kRows), most = std::max<int64_t>(kTasks / num_tile_pairs(w.tiles), 1);
  w.chunk_rows = std::max<int64_t>(up(blocks, most), 1) * kRows;
  w.chunks = up(params.N, w.chunk_rows);
  Workspace workspace(memory);
  workspace.take(w.centres, w.chunks * params.d);
  workspace.take(w.shifts, w.chunks * params.d);
  workspace.take(w.partial, w.chunks * params.d * params.d);
  bytes = workspace.bytes();
  return w;
}

template <typename T, int kTile>
cudaError_t sum_chunks(const Work& w, cudaStream_t stream) {
  const simt::LaunchShape shape{num_tile_pairs(w.tiles) * w.chunks, threads_of(kTile), Tiles<T, kTile>::shared_bytes()};
  return simt::launch(sum_chunk<T, kTile>, shape, stream, w);
}

}  // namespace

int64_t moments_workspace_bytes(const MomentsParams& params) {
  int64_t bytes = 0;
  work_of(params, nullptr, bytes);
  return bytes;
}

cudaError_t moments(const MomentsParams& params, void* workspace, cudaStream_t stream) {
  int64_t bytes = 0;
  const Work w = work_of(params, workspace, bytes);
  const bool wide = params.x.dtype == DType::kFloat64, small = tile_of(params.d) == kSmallTile;
  const auto sums = wide ? (small ? sum_chunks<double, kSmallTile> : sum_chunks<double, kLargeTile>)
                         : (small ? sum_chunks<float, kSmallTile> : sum_chunks<float, kLargeTile>);
  const cudaError_t error = sums(w, stream);
  if (error != cudaSuccess) return error;
  const int64_t numbers = int64_t(params.d) * params.d;
  return simt::launch(merge_chunks, {up(numbers, kMergeThreads), kMergeThreads, 0}, stream, w);
}

}  // namespace vqdm::cuda
