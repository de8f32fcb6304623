// Rows and panels as pair_scan.h reads them, centred by the mean of y.

#pragma once

#include <cstdint>
#include <vector>

#include "aligned_buffer.h"
#include "pair_costs.h"
#include "pair_scan.h"

namespace vqdm::cpu {

inline constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;  // scores are in units of log 2

// A weight so low that its code counts for nothing, and so far from overflow that differences are finite.
template <class T>
inline constexpr T kNever = sizeof(T) == 4 ? T(-0x1p100) : T(-0x1p1000);

// What weights are rounded as differences from: their median, which few very large ones do not move.
double typical_weight(const double* weights, int64_t M);

// Calls f(first tile, end) on ranges of the tiles of N rows; how they are cut changes the time alone.
template <class F>
void for_pair_tiles(int64_t N, const ParallelFor& parallel_for, F&& f) {
  constexpr int64_t kTiles = 16;  // 96 rows pass over a block of panels while it is in cache
  const int64_t tiles = (N + kPairRows - 1) / kPairRows, jobs = (tiles + kTiles - 1) / kTiles;
  parallel_for(jobs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) f(job * tiles / jobs, (job + 1) * tiles / jobs);
  });
}

template <class T>
class PairTiles {
 public:
  // Packs y.
  PairTiles(const PairProblem& problem, const PairScan<T>& scan, const ParallelFor& parallel_for);

  int64_t num_panels() const { return num_panels_; }
  int64_t block() const { return block_; }               // panels that stay in cache while rows pass over them
  double largest_norm() const { return largest_norm_; }  // of y - mean

  // With weights [num_panels, W], as pack_weights() makes them.
  PairPanels<T> panels(const T* weights) const { return {y_.data(), norms_.data(), weights, d_}; }
  // The numbers [M], `padding` beyond.
  AlignedBuffer<T> pack_weights(const double* numbers, double factor, double offset, T padding) const;

  const PairProblem& problem() const { return problem_; }
  const std::vector<double>& mean() const { return mean_; }

 private:
  void pack(int64_t begin, int64_t end, double* largest);

  const PairProblem problem_;
  const int W_;
  const int64_t d_, num_panels_, block_;
  std::vector<double> mean_;
  AlignedBuffer<T> y_, norms_;
  double largest_norm_ = 0;
};

// Some tiles of rows of x, for one thread.
template <class T>
class PairRowTiles {
 public:
  // Tiles [begin, end) of x: of kPairRows rows each, the last filled with the mean of y.
  PairRowTiles(const PairTiles<T>& tiles, int64_t begin, int64_t end);

  PairRows<T> rows() const { return {x_.data(), norms_.data(), near_.data()}; }
  double norm(int64_t row) const { return wide_norms_[row]; }  // ||x - mean||, rows counted from the first tile's

 private:
  const int64_t d_;
  AlignedBuffer<T> x_;
  std::vector<T> norms_, near_;
  std::vector<double> wide_norms_;
};

}  // namespace vqdm::cpu
