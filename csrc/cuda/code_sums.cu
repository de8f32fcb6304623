#include <algorithm>

#include "code_sums.h"
#include "operand.cuh"
#include "sort.cuh"

namespace vqdm::cuda {
namespace {

constexpr int kChunkRows = 256;
constexpr int kThreads = kChunkRows, kWarps = kThreads / 32;

// Rows of all heads are numbered through, and so are codes: head * K + index.
struct Work : CodeSumsParams {
  int64_t rows, codes;
  uint32_t* keys;         // [rows] the code of each row
  uint32_t* row_numbers;  // [rows]
  uint32_t* sorted_keys;  // [rows]
  uint32_t* order;        // [rows] row numbers, those of one code together, ascending
  uint32_t* starts;       // [codes + 1] where each code's rows begin in `order`
  double* chunk_sums;     // [2 windows, d] of codes that have several chunks
  void* sort_space;
  size_t sort_bytes;
};

__device__ void write_sum(const Work& w, int64_t at, double sum) {
  if (w.wide) {
    static_cast<double*>(w.sums)[at] = sum;
  } else {
    static_cast<float*>(w.sums)[at] = float(sum);
  }
}

// Chunks are filed by the window of kChunkRows places of `order` in which they begin. In a window begins at most one
// first chunk of a code that has several, as such a code reaches into the next window, and at most one later chunk.
__device__ int64_t chunk_slot(int64_t place, bool first) {
  return place / kChunkRows * 2 + (first ? 1 : 0);
}

__global__ void make_keys(Work w) {
  for (int64_t row = simt::block_index() * kThreads + simt::thread_index(); row < w.rows;
       row += simt::num_blocks() * kThreads) {
    const int64_t head = row / w.N;
    const int64_t at = head_offset(w.heads, w.indices, head) + row % w.N * w.indices.row_stride;
    const int64_t index = static_cast<const int64_t*>(w.indices.data)[at];
    if (index < 0 || index >= w.K) simt::fail("code_sums: expected indices in [0, num_codes)");
    w.keys[row] = uint32_t(head * w.K + index);
    w.row_numbers[row] = uint32_t(row);
  }
}

// The first place in `order` of each code, by bisection.
__global__ void find_starts(Work w) {
  for (int64_t k = simt::block_index() * kThreads + simt::thread_index(); k <= w.codes;
       k += simt::num_blocks() * kThreads) {
    int64_t below = 0, above = w.rows;  // keys before `below` are smaller than k, those from `above` on are not
    while (below < above) {
      const int64_t middle = (below + above) / 2;
      if (int64_t(w.sorted_keys[middle]) < k) {
        below = middle + 1;
      } else {
        above = middle;
      }
    }
    w.starts[k] = uint32_t(below);
  }
}

// sum_i z[order[i]][j] for places from .. to - 1, from left to right.
template <typename Load>
__device__ double sum_of_places(const Work& w, int64_t from, int64_t to, int64_t first_row, Load&& load_at) {
  double sum = 0;
#pragma unroll 8
  for (int64_t i = from; i < to; ++i) sum += load_at((int64_t(w.order[i]) - first_row) * w.z.row_stride);
  return sum;
}

__device__ void sum_chunk(const Work& w, int64_t place, int64_t k, int64_t start, int64_t end) {
  const int64_t last = place + kChunkRows < end ? place + kChunkRows : end;
  const int64_t head = k / w.K, z = head_offset(w.heads, w.z, head);
  for (int j = simt::lane_index(); j < w.d; j += 32) {
    const int64_t column = z + j * w.z.col_stride;
    double sum;
    if (w.z.dtype == DType::kFloat32) {
      const float* from = static_cast<const float*>(w.z.data) + column;
      sum = sum_of_places(w, place, last, head * w.N, [&](int64_t i) { return double(from[i]); });
    } else {
      sum = sum_of_places(w, place, last, head * w.N, [&](int64_t i) { return load(w.z, column + i); });
    }
    if (end - start <= kChunkRows) {
      write_sum(w, k * w.d + j, sum);
    } else {
      w.chunk_sums[chunk_slot(place, place == start) * w.d + j] = sum;
    }
  }
}

// One block per window of places. Each lane finds out whether a chunk begins at its place; then the warp takes the
// chunks that it has found, one after the other.
__global__ void sum_chunks(Work w) {
  const int64_t place = simt::block_index() * kChunkRows + simt::thread_index();
  int64_t k = 0, start = 0, end = 0;
  if (place < w.rows) {
    k = w.sorted_keys[place];
    start = w.starts[k];
    end = w.starts[k + 1];
  }
  const bool begins = place < w.rows && (place - start) % kChunkRows == 0;
  for (unsigned left = simt::ballot(begins); left != 0; left &= left - 1) {
    const int lane = simt::lowest_bit(left);
    sum_chunk(w, simt::shuffle(place, lane), simt::shuffle(k, lane), simt::shuffle(start, lane),
              simt::shuffle(end, lane));
  }
}

// One warp per code: its count, zeros where it has no rows, the sum of its chunks where it has several.
__global__ void finish_codes(Work w) {
  const int lane = simt::lane_index();
  for (int64_t k = simt::block_index() * kWarps + simt::warp_index(); k < w.codes; k += simt::num_blocks() * kWarps) {
    const int64_t start = w.starts[k], end = w.starts[k + 1];
    if (lane == 0) w.counts[k] = end - start;
    if (end > start && end - start <= kChunkRows) continue;
    for (int j = lane; j < w.d; j += 32) {
      double sum = 0;
      for (int64_t place = start; place < end; place += kChunkRows) {
        sum += w.chunk_sums[chunk_slot(place, place == start) * w.d + j];
      }
      write_sum(w, k * w.d + j, sum);
    }
  }
}

int64_t up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

int key_bits(int64_t codes) {
  int bits = 1;
  while (bits < 32 && (int64_t(1) << bits) < codes) ++bits;
  return bits;
}

// Lays the workspace out; with a null workspace, only measures it.
Work work_of(const CodeSumsParams& params, void* workspace, int64_t& bytes) {
  Work w{};
  static_cast<CodeSumsParams&>(w) = params;
  w.rows = params.heads.count() * params.N;
  w.codes = params.heads.count() * params.K;
  simt::sort_pairs(nullptr, w.sort_bytes, {}, w.rows, key_bits(w.codes), nullptr);
  bytes = 0;
  const auto take = [&]<typename T>(T*& pointer, int64_t count) {
    pointer = workspace == nullptr ? nullptr : reinterpret_cast<T*>(static_cast<char*>(workspace) + bytes);
    bytes += up(count * int64_t(sizeof(T)), 256) * 256;
  };
  take(w.keys, w.rows);
  take(w.row_numbers, w.rows);
  take(w.sorted_keys, w.rows);
  take(w.order, w.rows);
  take(w.starts, w.codes + 1);
  take(w.chunk_sums, 2 * up(w.rows, kChunkRows) * params.d);
  char* space = nullptr;
  take(space, int64_t(w.sort_bytes));
  w.sort_space = space;
  return w;
}

}  // namespace

int64_t code_sums_workspace_bytes(const CodeSumsParams& params) {
  int64_t bytes = 0;
  work_of(params, nullptr, bytes);
  return bytes;
}

cudaError_t code_sums(const CodeSumsParams& params, void* workspace, cudaStream_t stream) {
  int64_t bytes = 0;
  Work w = work_of(params, workspace, bytes);
  cudaError_t error = cudaSuccess;
  const auto then = [&](auto kernel, int64_t blocks) {
    const simt::LaunchShape shape{std::min(blocks, int64_t(1) << 30), kThreads, 0};
    if (error == cudaSuccess) error = simt::launch(kernel, shape, stream, w);
  };
  then(make_keys, up(w.rows, kThreads));
  if (error == cudaSuccess && w.rows > 0) {
    error = simt::sort_pairs(w.sort_space, w.sort_bytes, {w.keys, w.sorted_keys, w.row_numbers, w.order}, w.rows,
                             key_bits(w.codes), stream);
  }
  then(find_starts, up(w.codes + 1, kThreads));
  then(sum_chunks, up(w.rows, kChunkRows));
  then(finish_codes, up(w.codes, kWarps));
  return error;
}

}  // namespace vqdm::cuda
