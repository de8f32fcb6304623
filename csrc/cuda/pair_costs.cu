// What to expect of an H200. A quarter of a multiprocessor spends on 32 pairs, at the least, in clocks:
//   tensor cores   3 d / 64 products m16n8k16, at about 6.5 clocks each: 0.3 d
//   issue          9 for pair_logsumexp with its root, and d / 20
//   special units  8 for an exponential, and 8 for a root
// The largest of these is the limit where the two blocks on a multiprocessor overlap well, about the sum where they do
// not. A clock is 9 us for 16384 x 16384 pairs: with squared costs and d = 64, tensor cores take 0.18 ms for a
// pair_logsumexp; with roots and d = 32, 4 x 4096 x 8192 pairs take 0.07 ms in the special units.

#include <math.h>

#include <algorithm>
#include <limits>

#include "pair_costs.h"
#include "pair_costs_argmin.cuh"
#include "pair_costs_logsumexp.cuh"
#include "pair_costs_pack.cuh"
#include "pair_costs_portable.cuh"
#include "pair_costs_problem.cuh"
#include "pair_costs_sums.cuh"
#include "pair_costs_tensor_core.cuh"
#include "workspace.h"

namespace vqdm::cuda {
namespace {

// An H200 runs so many blocks at a time. On every device the splits are chosen for it: they show in the bits.
constexpr int64_t kWorkers = 2 * 132;
constexpr int64_t kPrologueTiles = 1;  // what a block does beside its tiles costs about as much as so many of them

int64_t up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

int depth_steps_of(const PairParams& params, bool tensor_cores) {
  const int steps = int(up(params.d, 16));
  const bool serves = tensor_cores && !params.wide && params.d <= (1 << 12);
  return serves &&
                 TensorCoreProduct::shared_bytes(steps) + 3 * kPairTile * int(sizeof(float)) <= simt::max_shared_bytes()
             ? steps
             : 0;
}

// The number of splits with which the last round of blocks has least to wait for.
int splits_of(int64_t items, int64_t code_tiles) {
  if (items == 0 || code_tiles == 0) return 0;
  int best = 1;
  int64_t least = std::numeric_limits<int64_t>::max();
  const int64_t most = std::min(std::max(kWorkers / items, int64_t(8)), code_tiles);
  for (int splits = 1; splits <= most; ++splits) {
    const int64_t cost = up(items * splits, kWorkers) * (up(code_tiles, splits) + kPrologueTiles);
    if (cost < least) best = splits, least = cost;
  }
  return best;
}

// |D~ - D| <= share S + floor with S = ||x'||^2 + ||y'||^2, where D is that of the definition, in units of the centred
// data, and u = half a unit in the last place of 1. As 2 ||x'|| ||y'|| is at most S, and D at most 2 S:
//   centring            x' and y' are off by u each: 4 u S
//   norms, additions    u S for the norms; three additions of numbers up to 2 S: 6 u S
//   product             in T, d u of ||x'|| ||y'||, twice: d u S. By tensor cores, 3 products of pieces, of which each
//                       step of 16 dimensions is off by 18 2^-23 (nearest_code_tensor_core.cuh; with room to spare
//                       here); and what is left out: 2^-22 of either number, and the product of the second pieces
//   definition          (d + 2) 2^-53 D
//   floor               a second piece of y below half precision's normal numbers is off by 2^-25 2^-8, and may be
//                       added as if it were 2^-14 2^-8 large: ||x'|| times sqrt(d) 2^-33 + d 2^-43, twice, where
//                       2 ||x'|| <= S + 1. In T, results below the smallest normal number
void set_product_error(int depth_steps, bool wide, int d, double& share, double& floor) {
  const double u = wide ? 0x1p-53 : 0x1p-24, definition = 2.0 * (d + 2) * 0x1p-53;
  floor = depth_steps > 0 ? sqrt(double(d)) * 0x1p-33 + d * 0x1p-43 : 1e-30;
  const double product =
      depth_steps > 0 ? 1.5 * (48 * depth_steps + 12) * 0x1p-23 + 3 * 0x1p-22 + floor : double(d) * u;
  share = 1.02 * (product + 12 * u + definition);
  floor *= 1.02;
}

// Lays the workspace out; with a null one, only measures it.
template <typename T>
PairProblem<T> problem_of(const PairParams& params, PairOp op, bool tensor_cores, void* out, void* memory,
                          int64_t& bytes) {
  PairProblem<T> p{};
  static_cast<PairParams&>(p) = params;
  p.op = op;
  p.out = out;
  p.row_tiles = up(params.N, kPairTile);
  p.code_tiles = up(params.M, kPairTile);
  p.splits = splits_of(params.heads * p.row_tiles, p.code_tiles);
  p.depth_steps = depth_steps_of(params, tensor_cores);
  // Below a hundredth of ||x'||^2, an error of the product would be five hundred times as large in the distance.
  double share = 0.01, floor = p.depth_steps > 0 ? 0x1p-20 : 0.0;
  if (op == PairOp::kArgmin) set_product_error(p.depth_steps, params.wide, params.d, share, floor);
  p.near_share = T(share);
  p.near_floor = T(floor);

  const int64_t rows = p.heads * p.row_tiles * kPairTile, codes = p.heads * p.code_tiles * kPairTile;
  const int64_t width = p.depth_steps > 0 ? p.depth_steps * 16 : p.d;  // two pieces of 2 bytes, or a T
  Workspace workspace(memory);
  workspace.take(p.facts, p.heads);
  workspace.take(p.centre, p.heads * p.d);
  T *packed_x = nullptr, *packed_y = nullptr;
  workspace.take(packed_x, rows * width);
  workspace.take(packed_y, codes * width);
  p.packed_x = packed_x;
  p.packed_y = packed_y;
  workspace.take(p.row_norm2, rows);
  workspace.take(p.row_near, rows);
  workspace.take(p.row_factor, rows);
  workspace.take(p.code_norm2, codes);
  workspace.take(p.code_weight, codes);
  const int64_t parts = p.heads * p.N * p.splits;
  workspace.take(p.partial, op == PairOp::kLogsumexp ? parts : 2 * p.heads * p.row_tiles * p.splits);
  workspace.take(p.bound, op == PairOp::kArgmin ? parts : 0);
  workspace.take(p.choices, op == PairOp::kArgmin ? parts : 0);
  bytes = workspace.bytes();
  return p;
}

// One block per item.
template <typename Product, template <typename> typename Reduction>
__global__ void __launch_bounds__(kPairThreads, Product::kBlocksPerProcessor)
    reduce_pairs(PairProblem<typename Product::Number> p) {
  using T = typename Product::Number;
  static_assert(Reduction<T>::kScratchBytes <= Product::kScratchBytes);
  const PairItem item = item_of(p, simt::block_index());
  simt::SharedMemory memory;
  const auto rows = memory.template take<T>(3 * kPairTile);
  const int64_t row = (item.head * p.row_tiles + item.row_tile) * kPairTile;
  for (int i = simt::thread_index(); i < kPairTile; i += kPairThreads) {
    rows[i] = p.row_norm2[row + i];
    rows[kPairTile + i] = p.row_near[row + i];
    rows[2 * kPairTile + i] = p.row_factor[row + i];
  }
  Product product(p, item, memory);
  Reduction<T> reduction(p, item);
  for (int64_t tile = item.tile_begin; tile < item.tile_end; ++tile) {
    PairProducts<T> values = {};
    product.add_to(values);  // with a barrier that makes `rows` visible
    reduction.take(p, item, tile, rows, values);
  }
  reduction.finish(p, item, product.scratch());
}

template <typename T>
class Launches {
 public:
  Launches(const PairProblem<T>& p, cudaStream_t stream) : p_(p), stream_(stream) {}

  void run(void (*kernel)(PairProblem<T>), int64_t blocks, int shared_bytes, int threads = kPairThreads) {
    if (error_ == cudaSuccess) error_ = simt::launch(kernel, {blocks, threads, shared_bytes}, stream_, p_);
  }

  void pack() {
    if (p_.row_tiles == 0 || p_.code_tiles == 0) return;
    run(measure_pairs<T>, p_.heads, measure_pairs_shared_bytes(), kMeasureThreads);
    run(pack_pairs<T>, p_.heads * (p_.row_tiles + p_.code_tiles), 0);
  }

  template <template <typename> typename Reduction>
  void reduce() {
    if constexpr (std::is_same_v<T, float>) {
      if (p_.depth_steps > 0) return reduce_by<TensorCoreProduct, Reduction>();
    }
    reduce_by<PortableProduct<T>, Reduction>();
  }

  cudaError_t error() const { return error_; }

 private:
  template <typename Product, template <typename> typename Reduction>
  void reduce_by() {
    const int bytes = 3 * kPairTile * int(sizeof(T)) + Product::shared_bytes(p_.depth_steps);
    run(reduce_pairs<Product, Reduction>, p_.heads * p_.row_tiles * p_.splits, bytes);
  }

  const PairProblem<T>& p_;
  const cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
};

// Calls f(launches, problem) with the problem in the type of the costs.
template <typename F>
cudaError_t launch_pairs(const PairParams& params, PairOp op, bool tensor_cores, void* out, void* workspace,
                         cudaStream_t stream, F&& f) {
  const auto with = [&]<typename T>(T) {
    int64_t bytes = 0;
    const PairProblem<T> p = problem_of<T>(params, op, tensor_cores, out, workspace, bytes);
    Launches<T> launches(p, stream);
    launches.pack();
    f(launches, p);
    return launches.error();
  };
  return params.wide ? with(double()) : with(float());
}

template <typename T>
int64_t blocks_of_rows(const PairProblem<T>& p) {
  return up(p.heads * p.N, kPairThreads);
}

}  // namespace

int64_t pair_workspace_bytes(const PairParams& params, PairOp op, bool tensor_cores) {
  int64_t bytes = 0;
  params.wide ? void(problem_of<double>(params, op, tensor_cores, nullptr, nullptr, bytes))
              : void(problem_of<float>(params, op, tensor_cores, nullptr, nullptr, bytes));
  return bytes;
}

cudaError_t pair_logsumexp(const PairParams& params, bool tensor_cores, double* out, void* workspace,
                           cudaStream_t stream) {
  return launch_pairs(params, PairOp::kLogsumexp, tensor_cores, out, workspace, stream,
                      [&]<typename T>(Launches<T>& launches, const PairProblem<T>& p) {
                        launches.template reduce<LogsumexpOfPairs>();
                        launches.run(merge_logsumexp<T>, blocks_of_rows(p), 0);
                      });
}

cudaError_t pair_sums(const PairParams& params, bool tensor_cores, double* out, void* workspace, cudaStream_t stream) {
  return launch_pairs(params, PairOp::kSums, tensor_cores, out, workspace, stream,
                      [&]<typename T>(Launches<T>& launches, const PairProblem<T>& p) {
                        launches.template reduce<SumsOfPairs>();
                        launches.run(merge_sums<T>, p.heads, kMostWarps * int(sizeof(double)));
                      });
}

cudaError_t pair_argmin(const PairParams& params, bool tensor_cores, int64_t* out, void* workspace,
                        cudaStream_t stream) {
  return launch_pairs(params, PairOp::kArgmin, tensor_cores, out, workspace, stream,
                      [&]<typename T>(Launches<T>& launches, const PairProblem<T>& p) {
                        launches.template reduce<BoundOfValues>();
                        launches.template reduce<ChoiceOfValues>();
                        launches.run(merge_choices<T>, blocks_of_rows(p), 0);
                      });
}

}  // namespace vqdm::cuda
