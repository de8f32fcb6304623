// One sweep over the pairs for a row step and the column step after it. With what the last column step left, no sum
// needs a maximum first: the columns of P_ij = exp(S_ij + u_j + v_i) sum to at most 1 / M, so that no P exceeds that,
// and rows, but for outliers, sum to far more than the smallest float. P is made for a few rows at a time and read
// twice:
//
//   r_i = sum_j P_ij        v'_i = v_i - log(r_i + floor) - log N        columns_j = sum_i P_ij exp(v'_i - v_i) - u_j
//
// A row whose sum is too small, or too large, to be told in T is summed anew from its own largest score.
//
// The last sweep has no column step. It reads P for the largest of each row instead: what lies within the error of P of
// it is decided in float64.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "default_float_mode.h"
#include "pair_costs.h"
#include "pair_exact.h"
#include "pair_scan.h"
#include "pair_tiles.h"

namespace vqdm::cpu {
namespace {

constexpr int64_t kParts = 32;  // sets of rows whose columns are summed apart, whatever the threads
constexpr double kSmallest = 0x1p-60, kLargest = 0x1p60;  // sums of P N M that lose nothing in float

int64_t num_blocks(int64_t N) {
  return (N + kPairBlockTiles * kPairRows - 1) / (kPairBlockTiles * kPairRows);
}

double log_add_exp(double a, double b) {
  const double high = std::max(a, b);
  return std::isfinite(high) ? high + std::log1p(std::exp(std::min(a, b) - high)) : high;
}

template <class T>
class Sweep {
 public:
  Sweep(const PairProblem& problem, const PairSweep& sweep, double* v, const ParallelFor& parallel_for)
      : problem_(problem),
        sweep_(sweep),
        v_(v),
        scan_(pair_scan<T>()),
        tiles_(problem, scan_, parallel_for),
        offset_(typical_weight(sweep.u, problem.M)),
        weights_(tiles_.pack_weights(sweep.u, kLog2E, offset_, kNever<T>)),
        panels_(tiles_.panels(weights_.data())),
        scale_(T(kLog2E * sweep.scale)),
        log_pairs_(sweep.log_rows + std::log(double(problem.M))) {
    for (int64_t j = 0; j < problem.M; ++j) {
      largest_weight_ = std::max(largest_weight_, std::abs(sweep.u[j] - offset_) / sweep.scale);
    }
  }

  int64_t width() const { return tiles_.num_panels() * scan_.panel_width; }

  // Calls f(part, block, powers) for all blocks of rows, which have gone through step(); those of one part in order.
  template <class F>
  void for_blocks(int64_t parts, const ParallelFor& parallel_for, F&& f) const {
    const int64_t num_tiles = (problem_.N + kPairRows - 1) / kPairRows, blocks = num_blocks(problem_.N);
    parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
      const DefaultFloatMode mode;
      AlignedBuffer<T> powers(kPairBlockTiles * kPairRows * width());
      for (int64_t part = begin; part < end; ++part) {
        for (int64_t i = part * blocks / parts; i < (part + 1) * blocks / parts; ++i) {
          const int64_t tile = i * kPairBlockTiles;
          Block block(*this, tile, std::min(tile + kPairBlockTiles, num_tiles));
          step(block, powers);
          f(part, block, powers);
        }
      }
    });
  }

  // Some tiles of rows: P in powers, [panels][tiles][kPairRows][W], as 2^offset times what it is.
  struct Block {
    Block(const Sweep& sweep, int64_t begin, int64_t end)
        : rows(sweep.tiles_, begin, end),
          all{end - begin, 0, sweep.tiles_.num_panels()},
          first(begin * kPairRows),
          count(int(std::min(end * kPairRows, sweep.problem_.N) - first)) {
      std::fill(std::begin(offsets), std::end(offsets), kNever<T>);  // rows that only fill the last tile
    }

    const PairRowTiles<T> rows;
    const PairRange all;
    const int64_t first;
    const int count;
    T offsets[kPairBlockTiles * kPairRows];
    double sums[kPairBlockTiles * kPairRows];
  };

  // Fills powers, and v' of the block's rows.
  void step(Block& block, AlignedBuffer<T>& powers) const {
    for (int i = 0; i < block.count; ++i) {
      block.offsets[i] = T(kLog2E * (sweep_.v[block.first + i] + sweep_.shift + offset_ + log_pairs_));
    }
    fill(block, powers);
    if (!std::all_of(block.sums, block.sums + block.count, [](double s) { return s > kSmallest && s < kLargest; })) {
      std::vector<PairLogSum<T>> sums(block.all.tiles * kPairRows, PairLogSum<T>{});
      for (auto& sum : sums) sum.reference = -std::numeric_limits<T>::infinity();
      scan_.logsumexp(block.rows.rows(), panels_, scale_, sweep_.squared, block.all, sums.data());
      // Such that each row's powers sum to about 1.
      for (int i = 0; i < block.count; ++i) block.offsets[i] = -T(sums[i].reference + T(std::log2(sums[i].total)));
      fill(block, powers);
    }
    for (int i = 0; i < block.count; ++i) {
      // log sum_j exp(S_ij + u_j), of the offset as it was rounded
      const double of_row = kLn2 * (std::log2(block.sums[i]) - double(block.offsets[i])) + offset_ + sweep_.shift;
      const double v = sweep_.v[block.first + i];
      v_[block.first + i] = v - log_add_exp(v + of_row, sweep_.log_floor) - sweep_.log_rows;
    }
  }

  // Adds P N M exp(v' - v) to columns.
  void add_columns(const Block& block, const AlignedBuffer<T>& powers, double* columns) const {
    T factors[kPairBlockTiles * kPairRows] = {};
    for (int i = 0; i < block.count; ++i) {
      factors[i] = T(std::exp(v_[block.first + i] + offset_ + sweep_.shift + log_pairs_ - kLn2 * block.offsets[i]));
    }
    scan_.add_columns(powers.data(), factors, block.all, columns);
  }

  // The lowest j that minimises c_ij - u_j / scale, for every row of the block.
  void choose(const Block& block, const AlignedBuffer<T>& powers, ExactCost& cost, int64_t* indices) const {
    const int W = scan_.panel_width;
    const double in_costs = kLog2E * sweep_.scale;  // log2 P, to costs
    for (int i = 0; i < block.count; ++i) {
      const double weight = largest_weight_ + std::abs(double(block.offsets[i])) / in_costs;
      const double error =
          in_costs * pair_error_bound<T>(block.rows.norm(i), tiles_.largest_norm(), weight, problem_.d, sweep_.squared);
      constexpr double of_exp2 = sizeof(T) == 4 ? 0x1p-21 : 0x1p-49;
      T limit = T(double(scan_.largest_power(powers.data(), block.all, i)) * std::exp2(-2 * (error + of_exp2)));
      if (!(limit > kLeastPower)) limit = 0;  // nothing is known of what underflows
      double best = std::numeric_limits<double>::infinity();
      int64_t index = -1;
      for (PairRange range = block.all;;) {
        range.begin = scan_.find_power(powers.data(), range, i, limit);
        if (range.begin == range.end) break;
        const int64_t p = range.begin++;
        const T* power = powers.data() + (p * block.all.tiles * kPairRows + i) * W;
        for (int64_t j = p * W; j < std::min((p + 1) * W, problem_.M); ++j) {
          if (power[j - p * W] < limit) continue;
          const double value = cost(block.first + i, j) + -sweep_.u[j] / sweep_.scale;
          if (value < best || (index < 0 && value == best)) {
            best = value;
            index = j;
          }
        }
      }
      indices[block.first + i] = std::max<int64_t>(index, 0);
    }
  }

 private:
  // Powers from here up have the precision of T.
  static constexpr T kLeastPower = sizeof(T) == 4 ? T(0x1p-120) : T(0x1p-1000);

  void fill(Block& block, AlignedBuffer<T>& powers) const {
    std::fill(std::begin(block.sums), std::end(block.sums), 0.0);
    for (PairRange range = block.all; range.begin < block.all.end; range.begin = range.end) {
      range.end = std::min(range.begin + tiles_.block(), block.all.end);
      scan_.exponentials(block.rows.rows(), panels_, scale_, sweep_.squared, block.offsets, range, powers.data(),
                         block.sums);
    }
  }

  const PairProblem& problem_;
  const PairSweep& sweep_;
  double* v_;
  const PairScan<T>& scan_;
  const PairTiles<T> tiles_;
  const double offset_;
  const AlignedBuffer<T> weights_;
  const PairPanels<T> panels_;
  const T scale_;
  const double log_pairs_;
  double largest_weight_ = 0;  // in costs
};

}  // namespace

template <class T>
void pair_sweep(const PairProblem& problem, const PairSweep& sweep, double* v, double* columns,
                const ParallelFor& parallel_for) {
  const int64_t N = problem.N, M = problem.M;
  if (N == 0 || M == 0) return void(std::fill_n(columns, M, -std::numeric_limits<double>::infinity()));
  const Sweep<T> run(problem, sweep, v, parallel_for);
  const int64_t parts = std::min(kParts, num_blocks(N)), width = run.width();
  std::vector<double> sums(parts * width, 0.0);
  run.for_blocks(parts, parallel_for, [&](int64_t part, const auto& block, const AlignedBuffer<T>& powers) {
    run.add_columns(block, powers, &sums[part * width]);
  });
  const double log_pairs = sweep.log_rows + std::log(double(M));
  for (int64_t j = 0; j < M; ++j) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * width + j];
    columns[j] = std::log(sum) - log_pairs - sweep.u[j];
  }
}

template <class T>
void pair_last_sweep(const PairProblem& problem, const PairSweep& sweep, double* v, int64_t* indices,
                     const ParallelFor& parallel_for) {
  if (problem.N == 0) return;
  const Sweep<T> run(problem, sweep, v, parallel_for);
  run.for_blocks(num_blocks(problem.N), parallel_for, [&](int64_t, const auto& block, const AlignedBuffer<T>& powers) {
    ExactCost cost(problem, sweep.squared);
    run.choose(block, powers, cost, indices);
  });
}

template void pair_sweep<float>(const PairProblem&, const PairSweep&, double*, double*, const ParallelFor&);
template void pair_sweep<double>(const PairProblem&, const PairSweep&, double*, double*, const ParallelFor&);
template void pair_last_sweep<float>(const PairProblem&, const PairSweep&, double*, int64_t*, const ParallelFor&);
template void pair_last_sweep<double>(const PairProblem&, const PairSweep&, double*, int64_t*, const ParallelFor&);

}  // namespace vqdm::cpu
