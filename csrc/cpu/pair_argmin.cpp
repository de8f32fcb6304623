// No fused multiply-adds here: the definition of the value has none.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "counter_random.h"
#include "default_float_mode.h"
#include "pair_costs.h"
#include "pair_exact.h"
#include "pair_scan.h"
#include "pair_tiles.h"

namespace vqdm::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Of a limit as it is stored and compared in T: in units of its size, which with much noise is far above the error.
template <class T>
constexpr double kRoundings = sizeof(T) == 4 ? 0x1p-21 : 0x1p-50;

struct Best {
  double value = kInfinity;
  int64_t index = -1;
};

}  // namespace

template <class T>
void pair_argmin(const PairProblem& problem, const double* bias, bool squared, const PairNoise& noise, int64_t* out,
                 const ParallelFor& parallel_for) {
  if (problem.M == 0) return void(std::fill_n(out, problem.N, 0));
  const PairScan<T>& scan = pair_scan<T>();
  const PairTiles<T> tiles(problem, scan, parallel_for);
  // score = -offset - (c + bias)
  std::vector<double> weights(problem.M);
  for (int64_t j = 0; j < problem.M; ++j) weights[j] = -bias[j];
  const double offset = -typical_weight(weights.data(), problem.M);
  const AlignedBuffer<T> packed = tiles.pack_weights(weights.data(), 1, -offset, kNever<T>);
  const PairPanels<T> panels = tiles.panels(packed.data());
  double largest_weight = 0;
  for (double weight : weights) largest_weight = std::max(largest_weight, std::abs(weight + offset));
  const double most_random = noise.scale == 0 ? 0 : noise.scale * kLargestGumbel;
  const int W = scan.panel_width;

  for_pair_tiles(problem.N, parallel_for, [&](int64_t begin, int64_t end) {
    const DefaultFloatMode mode;
    const PairRowTiles<T> rows(tiles, begin, end);
    const int64_t num_tiles = end - begin, first_row = begin * kPairRows,
                  num_rows = std::min(end * kPairRows, problem.N) - first_row;
    ExactCost exact_cost(problem, squared);
    std::vector<Best> best(num_rows);
    std::vector<double> error(num_rows);
    for (int64_t i = 0; i < num_rows; ++i) {
      error[i] = pair_error_bound<T>(rows.norm(i), tiles.largest_norm(), largest_weight, problem.d, squared);
    }
    AlignedBuffer<T> scores(kPairRows * W);
    // Below this score a code's value, less the most that noise can take off it, is above the best.
    std::vector<T> limits(num_tiles * kPairRows, std::numeric_limits<T>::infinity());
    std::fill_n(limits.begin(), num_rows, -std::numeric_limits<T>::infinity());
    const auto consider = [&](int64_t i, int64_t j, T score) {
      double random = 0;
      if (noise.scale != 0) {
        const auto row = uint64_t(noise.first_row + first_row + i);
        random = noise.scale * gumbel(noise.seed, row, uint64_t(j), noise.head);
        if (score + random < limits[i] + most_random) return;
      }
      double value = exact_cost(first_row + i, j) + bias[j];
      if (noise.scale != 0) value = value - random;
      Best& row = best[i];
      if (!(value < row.value || (value == row.value && (row.index < 0 || j < row.index)))) return;
      row = {value, j};
      const double limit = offset - value - error[i] - most_random;
      limits[i] = T(limit - kRoundings<T> * std::abs(limit));
    };
    for (int64_t p = 0; p < tiles.num_panels(); ++p) {
      for (int64_t t = 0; t < num_tiles; ++t) {
        unsigned hits = scan.above(rows.rows(), panels, T(1), squared, t, p, &limits[t * kPairRows], scores.data());
        for (; hits != 0; hits &= hits - 1) {
          const int r = __builtin_ctz(hits);
          const int64_t i = t * kPairRows + r;
          if (i >= num_rows) continue;
          const T* score = scores.data() + r * W;
          const auto count = int(std::min<int64_t>(W, problem.M - p * W));
          // The best score first: what it leaves open is little.
          const int top = noise.scale == 0 ? int(std::max_element(score, score + count) - score) : 0;
          consider(i, p * W + top, score[top]);
          for (int c = 0; c < count; ++c) {
            if (c != top && !(score[c] < limits[i])) consider(i, p * W + c, score[c]);
          }
        }
      }
    }
    for (int64_t i = 0; i < num_rows; ++i) out[first_row + i] = std::max<int64_t>(best[i].index, 0);
  });
}

template void pair_argmin<float>(const PairProblem&, const double*, bool, const PairNoise&, int64_t*,
                                 const ParallelFor&);
template void pair_argmin<double>(const PairProblem&, const double*, bool, const PairNoise&, int64_t*,
                                  const ParallelFor&);

}  // namespace vqdm::cpu
