#include <algorithm>
#include <limits>

#include "nearest_code.h"
#include "nearest_code_codes.cuh"
#include "nearest_code_decide.cuh"
#include "nearest_code_portable.cuh"
#include "nearest_code_problem.cuh"
#include "nearest_code_tensor_core.cuh"

namespace vqdm::cuda {
namespace {

constexpr int kBlocksPerProcessor = 2;  // of a filter, at a time: what its registers leave room for
constexpr int kPrologueTiles = 4;       // preparing a tile of rows costs about as much as so many tiles of codes

int64_t up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

bool uses_tensor_cores(const NearestCodeParams& params, NearestCodePath path) {
  const int steps = int(up(params.d, 16));
  return path == NearestCodePath::kFastest && params.d <= (1 << 12) &&
         tensor_core_shared_bytes(steps) <= simt::max_shared_bytes();
}

// The number of splits with which the last round of blocks has least to wait for. Any number is right.
int splits_of_first_pass(const Problem& p, int64_t row_tiles) {
  int best = 1;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int splits = 1; splits <= std::min<int64_t>(kMaxSplits, p.num_tiles); ++splits) {
    const int64_t rounds = up(row_tiles * splits, p.num_workers);
    const int64_t cost = rounds * (up(p.num_tiles, splits) + kPrologueTiles);
    if (cost < least) best = splits, least = cost;
  }
  return best;
}

// Lays the workspace out; with a null workspace, only measures it.
Problem problem_of(const NearestCodeParams& params, bool tensor_cores, void* workspace, int64_t& bytes) {
  Problem p{};
  static_cast<NearestCodeParams&>(p) = params;
  const int64_t heads = params.heads.count();
  bool shared_codebook = true;
  for (int i = 0; i < params.heads.num_dims; ++i) {
    shared_codebook &= params.heads.size[i] == 1 || (params.e.head_stride[i] == 0 && params.bias.head_stride[i] == 0);
  }
  p.num_groups = shared_codebook ? 1 : heads;
  p.rows = shared_codebook ? heads * params.N : params.N;
  p.num_tiles = up(params.K, kTileCodes);
  p.depth_steps = int(up(params.d, 16));
  p.max_outliers = int(16 + params.K / 64);
  p.in_double = params.z.dtype == DType::kFloat64 || params.e.dtype == DType::kFloat64;
  p.both_float32 = params.z.dtype == DType::kFloat32 && params.e.dtype == DType::kFloat32;
  p.num_workers = int64_t(std::max(1, simt::num_multiprocessors())) * kBlocksPerProcessor;
  p.num_splits = splits_of_first_pass(p, p.num_groups * up(p.rows, tensor_cores ? kTensorRows : kPortableRows));
  p.records_per_group = p.rows * p.num_splits;

  bytes = 0;
  const auto take = [&]<typename T>(T*& pointer, int64_t count) {
    pointer = workspace == nullptr ? nullptr : reinterpret_cast<T*>(static_cast<char*>(workspace) + bytes);
    bytes += up(count * int64_t(sizeof(T)), 256) * 256;
  };
  take(p.facts, p.num_groups);
  take(p.centre, p.num_groups * params.d);
  take(p.packed_bias, p.num_groups * p.num_tiles * kTileCodes);
  if (tensor_cores) take(p.packed, p.num_groups * p.num_tiles * p.depth_steps * kStepUnits);
  take(p.outliers, p.num_groups * p.max_outliers);
  take(p.margin, p.num_groups * p.rows);
  take(p.records, p.num_groups * p.records_per_group);
  take(p.open[0], tensor_cores ? p.num_groups * p.rows : 0);
  take(p.open[1], p.num_groups * p.rows);
  return p;
}

}  // namespace

int64_t nearest_code_workspace_bytes(const NearestCodeParams& params, NearestCodePath path) {
  int64_t bytes = 0;
  problem_of(params, uses_tensor_cores(params, path), nullptr, bytes);
  return bytes;
}

cudaError_t nearest_code(const NearestCodeParams& params, NearestCodePath path, void* workspace, cudaStream_t stream) {
  const bool tensor_cores = uses_tensor_cores(params, path);
  int64_t bytes = 0;
  const Problem p = problem_of(params, tensor_cores, workspace, bytes);
  if (p.rows == 0) return cudaSuccess;

  cudaError_t error = cudaSuccess;
  const auto then = [&](auto kernel, int64_t blocks, int threads, int shared_bytes, auto... arguments) {
    if (error == cudaSuccess) {
      error = simt::launch(kernel, {blocks, threads, shared_bytes}, stream, p, arguments...);
    }
  };
  const auto decide_pass = [&](int pass, int tile_rows, int list) {
    // How long a list is, the host does not know: few blocks, which end at once where they find nothing.
    const int64_t most = std::min(p.num_groups * up(p.rows, kRowsPerDecideBlock), int64_t(1) << 30);
    then(decide, pass == 0 ? most : std::min(most, 8 * p.num_workers), kDecideThreads, 0, pass, tile_rows, list);
  };
  const auto filter_blocks = [&](int tile_rows) {
    const int64_t items = p.num_groups * up(p.rows, tile_rows) * std::min<int64_t>(kMaxSplits, p.num_tiles);
    return std::min(items, p.num_workers);
  };

  then(measure_codes, p.num_groups, kCodesThreads, measure_shared_bytes());
  then(pack_codes, p.num_groups * p.num_tiles, kCodesThreads, pack_shared_bytes(), tensor_cores);
  if (tensor_cores) {
    then(filter_by_tensor_cores, filter_blocks(kTensorRows), kTensorThreads, tensor_core_shared_bytes(p.depth_steps));
    decide_pass(0, kTensorRows, 0);
    then(filter_portably, filter_blocks(kPortableRows), kPortableThreads, portable_shared_bytes(), 1);
    decide_pass(1, kPortableRows, 1);
  } else {
    then(filter_portably, filter_blocks(kPortableRows), kPortableThreads, portable_shared_bytes(), 0);
    decide_pass(0, kPortableRows, 1);
  }
  then(search_exactly, std::min(p.num_groups * p.rows, p.num_workers), kExactThreads, exact_shared_bytes());
  return error;
}

}  // namespace vqdm::cuda
