#include "pair_tiles.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace vqdm::cpu {
namespace {

constexpr int64_t kBlockBytes = 256 << 10;  // the share of L2 that a block of panels may take
constexpr int64_t kGrain = 16384;           // numbers that are worth a thread's while
constexpr double kNear = 0.01;              // of ||x||^2: below, the expanded distance has lost two digits

}  // namespace

double typical_weight(const double* weights, int64_t M) {
  std::vector<double> finite;
  std::copy_if(weights, weights + M, std::back_inserter(finite), [](double w) { return std::isfinite(w); });
  if (finite.empty()) return 0;
  const auto middle = finite.begin() + int64_t(finite.size() / 2);
  std::nth_element(finite.begin(), middle, finite.end());
  return *middle;
}

template <class T>
PairTiles<T>::PairTiles(const PairProblem& problem, const PairScan<T>& scan, const ParallelFor& parallel_for)
    : problem_(problem),
      W_(scan.panel_width),
      d_(problem.d),
      num_panels_((problem.M + W_ - 1) / W_),
      block_(std::max<int64_t>(1, kBlockBytes / int64_t(d_ * W_ * sizeof(T)))),
      mean_(d_, 0.0),
      y_(num_panels_ * d_ * W_),
      norms_(num_panels_ * W_) {
  // The mean of each panel's rows, then of all, in one order whatever the threads. Any centre is right: it may be
  // rounded.
  std::vector<double> sums(num_panels_ * d_, 0.0), largest(num_panels_, 0.0);
  const int64_t grain = 1 + kGrain / (d_ * W_);
  parallel_for(num_panels_, grain, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin * W_; j < std::min(end * W_, problem_.M); ++j) {
      double* sum = &sums[j / W_ * d_];
      problem_.y.with_row(j, [&](const auto* row) {
        for (int64_t k = 0; k < d_; ++k) sum[k] += double(row[k * problem_.y.col_stride]);
      });
    }
  });
  for (int64_t p = 0; p < num_panels_; ++p) {
    for (int64_t k = 0; k < d_; ++k) mean_[k] += sums[p * d_ + k];
  }
  for (double& m : mean_) m = double(T(m / double(std::max<int64_t>(problem.M, 1))));
  parallel_for(num_panels_, grain, [&](int64_t begin, int64_t end) { pack(begin, end, largest.data()); });
  for (double norm : largest) largest_norm_ = std::max(largest_norm_, norm);
  largest_norm_ = std::sqrt(largest_norm_);
}

template <class T>
void PairTiles<T>::pack(int64_t begin, int64_t end, double* largest) {
  for (int64_t p = begin; p < end; ++p) {
    T* panel = y_.data() + p * d_ * W_;
    std::fill_n(panel, d_ * W_, T(0));
    for (int c = 0; c < W_; ++c) {
      const int64_t j = p * W_ + c;
      double norm2 = 0;
      if (j < problem_.M) {
        problem_.y.with_row(j, [&](const auto* row) {
          for (int64_t k = 0; k < d_; ++k) {
            const T y = T(double(row[k * problem_.y.col_stride]) - mean_[k]);
            panel[k * W_ + c] = y;
            norm2 += double(y) * double(y);
          }
        });
      }
      norms_.data()[p * W_ + c] = T(norm2);
      if (!(norm2 <= largest[p])) largest[p] = norm2;  // NaN stays
    }
  }
}

template <class T>
AlignedBuffer<T> PairTiles<T>::pack_weights(const double* numbers, double factor, double offset, T padding) const {
  AlignedBuffer<T> out(num_panels_ * W_);
  for (int64_t j = 0; j < num_panels_ * W_; ++j) {
    const T weight = j < problem_.M ? T(factor * (numbers[j] - offset)) : padding;
    out.data()[j] = weight < padding ? padding : weight;  // -infinity would make NaN of a difference
  }
  return out;
}

template <class T>
PairRowTiles<T>::PairRowTiles(const PairTiles<T>& tiles, int64_t begin, int64_t end)
    : d_(tiles.problem().d),
      x_((end - begin) * d_ * kPairRows),
      norms_((end - begin) * kPairRows),
      near_(norms_.size()),
      wide_norms_(norms_.size()) {
  const PairProblem& problem = tiles.problem();
  const std::vector<double>& mean = tiles.mean();
  for (int64_t i = 0; i < int64_t(norms_.size()); ++i) {
    T* x = x_.data() + i / kPairRows * d_ * kPairRows + i % kPairRows;
    double norm2 = 0;
    if (begin * kPairRows + i < problem.N) {
      problem.x.with_row(begin * kPairRows + i, [&](const auto* row) {
        for (int64_t k = 0; k < d_; ++k) {
          const T centred = T(double(row[k * problem.x.col_stride]) - mean[k]);
          x[k * kPairRows] = -2 * centred;
          norm2 += double(centred) * double(centred);
        }
      });
    } else {
      for (int64_t k = 0; k < d_; ++k) x[k * kPairRows] = T(0);
    }
    norms_[i] = T(norm2);
    near_[i] = std::max(T(kNear * norm2), kTinyDistance<T>);
    wide_norms_[i] = std::sqrt(norm2);
  }
}

template class PairRowTiles<float>;
template class PairRowTiles<double>;
template class PairTiles<float>;
template class PairTiles<double>;

}  // namespace vqdm::cpu
