#include "pair_costs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "default_float_mode.h"
#include "pair_scan.h"
#include "pair_tiles.h"

namespace vqdm::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

template <class T>
void pair_logsumexp(const PairProblem& problem, const double* weights, double scale, bool squared, double* out,
                    const ParallelFor& parallel_for) {
  if (problem.M == 0) return void(std::fill_n(out, problem.N, -kInfinity));
  const PairScan<T>& scan = pair_scan<T>();
  const PairTiles<T> tiles(problem, scan, parallel_for);
  // Weights as differences from a typical one, so that rounding them to T costs little; scores in units of log 2.
  const double offset = typical_weight(weights, problem.M);
  const AlignedBuffer<T> packed = tiles.pack_weights(weights, kLog2E, offset, kNever<T>);
  const PairPanels<T> panels = tiles.panels(packed.data());
  const T factor = T(kLog2E * scale);
  for_pair_tiles(problem.N, parallel_for, [&](int64_t begin, int64_t end) {
    const DefaultFloatMode mode;
    const PairRowTiles<T> rows(tiles, begin, end);
    PairLogSum<T> empty{};
    empty.reference = -std::numeric_limits<T>::infinity();
    std::vector<PairLogSum<T>> sums((end - begin) * kPairRows, empty);
    for (int64_t p = 0; p < tiles.num_panels(); p += tiles.block()) {
      const PairRange range{end - begin, p, std::min(p + tiles.block(), tiles.num_panels())};
      scan.logsumexp(rows.rows(), panels, factor, squared, range, sums.data());
    }
    for (int64_t i = begin * kPairRows; i < std::min(end * kPairRows, problem.N); ++i) {
      const PairLogSum<T>& sum = sums[i - begin * kPairRows];
      out[i] = offset + kLn2 * (double(sum.reference) + std::log2(sum.total));
    }
  });
}

template <class T>
void pair_sums(const PairProblem& problem, double shift, double* out, const ParallelFor& parallel_for) {
  out[0] = out[1] = 0;
  if (problem.M == 0 || problem.N == 0) return;
  const PairScan<T>& scan = pair_scan<T>();
  const PairTiles<T> tiles(problem, scan, parallel_for);
  const std::vector<double> ones(problem.M, 1.0);
  const AlignedBuffer<T> packed = tiles.pack_weights(ones.data(), 1, 0, T(0));
  const PairPanels<T> panels = tiles.panels(packed.data());
  constexpr int64_t kPanels = 16;  // whose sums are taken in T
  std::vector<double> of_rows(2 * problem.N);
  for_pair_tiles(problem.N, parallel_for, [&](int64_t begin, int64_t end) {
    const DefaultFloatMode mode;
    const PairRowTiles<T> rows(tiles, begin, end);
    std::vector<double> sums((end - begin) * kPairRows * 2, 0.0);
    for (int64_t p = 0; p < tiles.num_panels(); p += kPanels) {
      const PairRange range{end - begin, p, std::min(p + kPanels, tiles.num_panels())};
      scan.moments(rows.rows(), panels, T(shift), range, reinterpret_cast<double (*)[2]>(sums.data()));
    }
    const int64_t first = begin * kPairRows, last = std::min(end * kPairRows, problem.N);
    std::copy_n(sums.begin(), 2 * (last - first), &of_rows[2 * first]);
  });
  for (int64_t i = 0; i < 2 * problem.N; ++i) out[i % 2] += of_rows[i];
}

#define VQDM_INSTANTIATE(T)                                                                                      \
  template void pair_logsumexp<T>(const PairProblem&, const double*, double, bool, double*, const ParallelFor&); \
  template void pair_sums<T>(const PairProblem&, double, double*, const ParallelFor&);
VQDM_INSTANTIATE(float)
VQDM_INSTANTIATE(double)

}  // namespace vqdm::cpu
