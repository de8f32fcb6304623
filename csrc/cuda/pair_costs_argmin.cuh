// pair_argmin, in two passes over the pairs: the first finds, in T, a bound on the row's smallest value; the second
// computes, from the definition, the values that may be as small.

#pragma once

#include "pair_costs_values.cuh"

namespace vqdm::cuda {

template <typename T>
class BoundOfValues {
 public:
  static constexpr int kScratchBytes = kPairTile * kThreadsOfRow * int(sizeof(T));

  __device__ BoundOfValues(const PairProblem<T>& p, const PairItem& item) : noise_(p, item) {
    for (int r = 0; r < kRowsOfThread; ++r) least_[r] = INFINITY;
  }

  __device__ void take(const PairProblem<T>& p, const PairItem& item, int64_t tile, simt::Shared<T> rows,
                       PairProducts<T>& values) {
    to_value_bounds<true>(p, item, tile, rows, noise_, least_, values);
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) {
#pragma unroll
      for (int c = 0; c < kCodesOfThread; ++c) {
        least_[r] = fmin(at<T>(values, r, c), least_[r]);
      }
    }
  }

  __device__ void finish(const PairProblem<T>& p, const PairItem& item, simt::Shared<T> scratch) {
    for (int r = 0; r < kRowsOfThread; ++r) {
      scratch[row_in_tile(r) * kThreadsOfRow + place_in_row()] = least_[r];
    }
    simt::sync_threads();
    const int in_tile = simt::thread_index();
    const int64_t row = item.row_tile * kPairTile + in_tile;
    if (in_tile >= kPairTile || row >= p.N) return;
    T least = INFINITY;
    for (int i = in_tile * kThreadsOfRow; i < (in_tile + 1) * kThreadsOfRow; ++i) {
      least = fmin(T(scratch[i]), least);
    }
    p.bound[(item.head * p.N + row) * p.splits + item.split] = least;
  }

 private:
  Noise<T> noise_;
  T least_[kRowsOfThread];
};

// The lower index wins a tie, so the order of merging does not matter.
__device__ inline Choice better_choice(const Choice& a, const Choice& b) {
  if (b.index < 0) return a;
  if (a.index < 0) return b;
  return b.value < a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

template <typename T>
class ChoiceOfValues {
 public:
  static constexpr int kScratchBytes = kPairTile * kThreadsOfRow * 16;

  __device__ ChoiceOfValues(const PairProblem<T>& p, const PairItem& item) : noise_(p, item) {
    for (int r = 0; r < kRowsOfThread; ++r) {
      const int64_t row = item.row_tile * kPairTile + row_in_tile(r);
      best_[r] = {0, -1};
      limit_[r] = row < p.N ? T(INFINITY) : T(-INFINITY);
      for (int s = 0; row < p.N && s < p.splits; ++s) {
        const T bound = p.bound[(item.head * p.N + row) * p.splits + s];
        limit_[r] = fmin(bound, limit_[r]);
      }
    }
  }

  __device__ void take(const PairProblem<T>& p, const PairItem& item, int64_t tile, simt::Shared<T> rows,
                       PairProducts<T>& values) {
    to_value_bounds<false>(p, item, tile, rows, noise_, limit_, values);
    uint64_t candidates = 0;
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) {
#pragma unroll
      for (int c = 0; c < kCodesOfThread; ++c) {
        if (!(at<T>(values, r, c) > limit_[r])) candidates |= uint64_t(1) << (r * kCodesOfThread + c);
      }
    }
    while (candidates != 0) {
      const unsigned low = unsigned(candidates);
      const int bit = low != 0 ? simt::lowest_bit(low) : 32 + simt::lowest_bit(unsigned(candidates >> 32));
      candidates &= candidates - 1;
      const int of_thread = bit / kCodesOfThread;
      const int64_t row = item.row_tile * kPairTile + row_in_tile(of_thread);
      const int64_t code = tile * kPairTile + code_in_tile(bit % kCodesOfThread);
      if (row >= p.N || code >= p.M) continue;
      const double value = value_of(p, item.head, row, code);
      if (isnan(value)) continue;
#pragma unroll
      for (int r = 0; r < kRowsOfThread; ++r) {
        if (r == of_thread) best_[r] = better_choice(best_[r], {value, code});
      }
    }
  }

  __device__ void finish(const PairProblem<T>& p, const PairItem& item, simt::Shared<T> scratch) {
    const auto values = scratch.template as<double>();
    const auto indices = scratch.template as<int64_t>().from(kPairTile * kThreadsOfRow);
    for (int r = 0; r < kRowsOfThread; ++r) {
      const int place = row_in_tile(r) * kThreadsOfRow + place_in_row();
      values[place] = best_[r].value;
      indices[place] = best_[r].index;
    }
    simt::sync_threads();
    const int in_tile = simt::thread_index();
    const int64_t row = item.row_tile * kPairTile + in_tile;
    if (in_tile >= kPairTile || row >= p.N) return;
    Choice best{0, -1};
    for (int i = in_tile * kThreadsOfRow; i < (in_tile + 1) * kThreadsOfRow; ++i) {
      best = better_choice(best, {values[i], indices[i]});
    }
    p.choices[(item.head * p.N + row) * p.splits + item.split] = best;
  }

 private:
  Noise<T> noise_;
  T limit_[kRowsOfThread];
  Choice best_[kRowsOfThread];
};

// One thread per row.
template <typename T>
static __global__ void merge_choices(PairProblem<T> p) {
  const int64_t row = simt::block_index() * kPairThreads + simt::thread_index();
  if (row >= p.heads * p.N) return;
  Choice best{0, -1};
  for (int s = 0; s < p.splits; ++s) best = better_choice(best, p.choices[row * p.splits + s]);
  static_cast<int64_t*>(p.out)[row] = best.index < 0 ? 0 : best.index;
}

}  // namespace vqdm::cuda
