// pair_sums: in T over a thread's pairs of a tile, in float64 beyond.

#pragma once

#include "pair_costs_problem.cuh"
#include "reduce.cuh"

namespace vqdm::cuda {

template <typename T>
class SumsOfPairs {
 public:
  static constexpr int kScratchBytes = kMostWarps * int(sizeof(double));

  __device__ SumsOfPairs(const PairProblem<T>& p, const PairItem& item)
      : shift_(T(load(p.factor, item.head * p.factor.row_stride) * p.facts[item.head].unit)) {}

  __device__ void take(const PairProblem<T>& p, const PairItem& item, int64_t tile, simt::Shared<T> rows,
                       PairProducts<T>& values) {
    to_dist2(p, item, tile, rows, values);
    to_roots(values);
    const OfCodes<T> counts(p.code_weight + item.head * p.code_tiles * kPairTile, tile);
    T first = 0, second = 0;
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) {
      if (item.row_tile * kPairTile + row_in_tile(r) >= p.N) continue;
#pragma unroll
      for (int c = 0; c < kCodesOfThread; ++c) {
        const T difference = (at<T>(values, r, c) - shift_) * counts[c];
        first += difference;
        second = fma(difference, difference, second);
      }
    }
    first_ += double(first);
    second_ += double(second);
  }

  __device__ void finish(const PairProblem<T>& p, const PairItem& item, simt::Shared<T> scratch) {
    const auto partial = scratch.template as<double>();
    first_ = block_sum(first_, partial);
    second_ = block_sum(second_, partial);
    if (simt::thread_index() > 0) return;
    double* out = p.partial + ((item.head * p.row_tiles + item.row_tile) * p.splits + item.split) * 2;
    out[0] = first_;
    out[1] = second_;
  }

 private:
  T shift_;
  double first_ = 0, second_ = 0;
};

// One block per head. Turns sums about the shift as T has it into sums about the shift as it was given.
template <typename T>
static __global__ void __launch_bounds__(kPairThreads) merge_sums(PairProblem<T> p) {
  simt::SharedMemory memory;
  const auto of_warps = memory.take<double>(kMostWarps);
  const int64_t head = simt::block_index(), parts = p.row_tiles * p.splits;
  double first = 0, second = 0;
  for (int64_t i = simt::thread_index(); i < parts; i += kPairThreads) {
    first += p.partial[(head * parts + i) * 2];
    second += p.partial[(head * parts + i) * 2 + 1];
  }
  first = block_sum(first, of_warps);
  second = block_sum(second, of_warps);
  if (simt::thread_index() > 0) return;
  double* out = static_cast<double*>(p.out) + 2 * head;
  out[0] = out[1] = 0;
  if (parts == 0) return;
  const double unit = p.facts[head].unit, shift = load(p.factor, head * p.factor.row_stride) * unit;
  const double moved = double(T(shift)) - shift, pairs = double(p.N) * double(p.M);
  out[0] = (first + pairs * moved) / unit;
  out[1] = (second + 2 * moved * first + pairs * moved * moved) / (unit * unit);
}

}  // namespace vqdm::cuda
