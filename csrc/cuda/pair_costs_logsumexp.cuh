// pair_logsumexp: each thread keeps a reference and a sum of 2^(score - reference) for each of its rows; the reference
// rises only where a score exceeds it by much.

#pragma once

#include "pair_costs_problem.cuh"

namespace vqdm::cuda {

template <typename T>
class LogsumexpOfPairs {
 public:
  static constexpr int kScratchBytes = 2 * kPairTile * kThreadsOfRow * int(sizeof(T));

  __device__ LogsumexpOfPairs(const PairProblem<T>& p, const PairItem& item) {
    const double factor = load(p.factor, item.head * p.factor.row_stride) * kLog2E / cost_unit(p, item.head);
    factor_ = factor > -kLowest ? kLowest : T(-factor);  // finite, so that a cost of 0 counts 0
    for (int r = 0; r < kRowsOfThread; ++r) {
      reference_[r] = kLowest;
      sum_[r] = 0;
    }
  }

  __device__ void take(const PairProblem<T>& p, const PairItem& item, int64_t tile, simt::Shared<T> rows,
                       PairProducts<T>& values) {
    to_dist2(p, item, tile, rows, values);
    if (!p.squared) to_roots(values);
    const OfCodes<T> weight(p.code_weight + item.head * p.code_tiles * kPairTile, tile);
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) {
      T most = -INFINITY;
#pragma unroll
      for (int c = 0; c < kCodesOfThread; ++c) {
        T& score = at<T>(values, r, c);
        score = fma(factor_, score, weight[c]);
        most = fmax(score, most);
      }
      if (most > reference_[r] + kSlack) {
        sum_[r] *= fast_exp2(reference_[r] - most);
        reference_[r] = most;
      }
      T sum = 0;
#pragma unroll
      for (int c = 0; c < kCodesOfThread; ++c) sum += fast_exp2(at<T>(values, r, c) - reference_[r]);
      sum_[r] += sum;
    }
  }

  __device__ void finish(const PairProblem<T>& p, const PairItem& item, simt::Shared<T> scratch) {
    const auto sums = scratch.from(kPairTile * kThreadsOfRow);
    for (int r = 0; r < kRowsOfThread; ++r) {
      const int place = row_in_tile(r) * kThreadsOfRow + place_in_row();
      scratch[place] = reference_[r];
      sums[place] = sum_[r];
    }
    simt::sync_threads();
    const int in_tile = simt::thread_index();
    const int64_t row = item.row_tile * kPairTile + in_tile;
    if (in_tile >= kPairTile || row >= p.N) return;
    double most = kLowest, sum = 0;
    for (int i = in_tile * kThreadsOfRow; i < (in_tile + 1) * kThreadsOfRow; ++i) {
      most = fmax(double(scratch[i]), most);
    }
    for (int i = in_tile * kThreadsOfRow; i < (in_tile + 1) * kThreadsOfRow; ++i) {
      sum += double(sums[i]) * exp2(double(scratch[i]) - most);
    }
    p.partial[(item.head * p.N + row) * p.splits + item.split] = most + log2(sum);
  }

 private:
  static constexpr T kLowest = T(-3e38f);  // finite, so that a score of -Inf counts 0
  static constexpr T kSlack = 8;           // in factors of two

  T factor_;
  T reference_[kRowsOfThread], sum_[kRowsOfThread];
};

// One thread per row.
template <typename T>
static __global__ void merge_logsumexp(PairProblem<T> p) {
  const int64_t row = simt::block_index() * kPairThreads + simt::thread_index();
  if (row >= p.heads * p.N) return;
  const double* partial = p.partial + row * p.splits;
  double most = -INFINITY, sum = 0;
  for (int s = 0; s < p.splits; ++s) most = fmax(partial[s], most);
  for (int s = 0; s < p.splits; ++s) {
    // Where all are -Inf, there is no difference to take.
    sum += most == -INFINITY && partial[s] == most ? 0.0 : exp2(partial[s] - most);
  }
  const double reference = p.splits == 0 ? 0.0 : p.facts[row / p.N].reference;
  static_cast<double*>(p.out)[row] = sum == 0 ? double(-INFINITY) : kLn2 * (most + log2(sum)) + reference;
}

}  // namespace vqdm::cuda
