#include "moments.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "aligned_buffer.h"
#include "clones.h"
#include "scatter_block.h"

namespace vqdm::cpu {
namespace {

constexpr int64_t kGroupBlocks = 8;           // fewer are done sooner than another thread wakes up
constexpr int64_t kMaxGroups = 64;            // each has a scatter of its own,
constexpr int64_t kGroupBytes = 256ll << 20;  // of this size together

// A sum over rows: their number, their mean as first + shift, and their scatter about it.
struct Group {
  double n = 0;
  std::vector<double> first, shift;
  AlignedBuffer<double> scatter;  // see scatter_block.h
};

constexpr int kColumnsAtOnce = 16;  // of these, the sums stay in registers
static_assert(kScatterColumns % kColumnsAtOnce == 0);

template <class T>
void copy_rows(const T* x, int64_t row_stride, int64_t col_stride, int n, int d, T* out, int64_t stride) {
  for (int r = 0; r < n; ++r) {
    for (int j = 0; j < d; ++j) out[r * stride + j] = x[r * row_stride + j * col_stride];
  }
}

// The means of kColumns columns of n rows less a centre; where kWrite, also those rows.
template <class T, int kColumns, bool kWrite>
[[gnu::always_inline]] inline void centre_columns(const T* x, int64_t x_stride, const T* centre, int n, T* out,
                                                  int64_t stride, double* means) {
  T own[kColumns];  // a copy, which the compiler knows the rows not to overlap
  std::memcpy(own, centre, sizeof own);
  double sums[kColumns] = {};
  for (int r = 0; r < n; ++r) {
    T values[kColumns];
    std::memcpy(values, x + r * x_stride, sizeof values);
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) values[j] -= own[j];
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) sums[j] += double(values[j]);
    if (kWrite) std::memcpy(out + r * stride, values, sizeof values);
  }
  for (int j = 0; j < kColumns; ++j) means[j] = sums[j] / n;
}

// Of n adjacent rows of d numbers. x ends with its last number: what is not a whole group of columns goes one by one.
template <class T, bool kWrite>
VQDM_CLONES void centre_rows(const T* x, int64_t x_stride, const T* centre, int n, int d, T* out, int64_t stride,
                             double* means) {
  int j = 0;
  for (; j + kColumnsAtOnce <= d; j += kColumnsAtOnce) {
    centre_columns<T, kColumnsAtOnce, kWrite>(x + j, x_stride, centre + j, n, out + j, stride, means + j);
  }
  for (; j + 4 <= d; j += 4) {
    centre_columns<T, 4, kWrite>(x + j, x_stride, centre + j, n, out + j, stride, means + j);
  }
  for (; j < d; ++j) centre_columns<T, 1, kWrite>(x + j, x_stride, centre + j, n, out + j, stride, means + j);
}

template <class T>
class GroupSummer {
 public:
  GroupSummer(const Matrix& x, int d) : x_(x), d_(d), stride_(row_stride(d)), rows_(kMomentRows * stride_) {
    std::fill(rows_.data(), rows_.data() + kMomentRows * stride_, T(0));
    for (auto* v : {&between_, &weighted_, &error_, &minus_error_}) v->assign(scatter_columns(d), 0.0);
    centre_.assign(scatter_columns(d), T(0));
  }

  // group: empty, with room for its scatter.
  void add_rows(int64_t begin, int64_t end, Group& group) {
    group.first.assign(d_, 0.0);
    group.shift.assign(d_, 0.0);
    for (int64_t i = begin; i < end; i += kMomentRows)
      add_block(i, int(std::min<int64_t>(kMomentRows, end - i)), group);
  }

 private:
  // A stride of whole pages would put a panel of columns into a few sets of the cache.
  static int64_t row_stride(int d) {
    constexpr int64_t kLine = 64 / sizeof(T);
    return (scatter_columns(d) / kLine | 1) * kLine;
  }

  void add_block(int64_t first_row, int n, Group& group) {
    const T* x = x_.row<T>(first_row);
    int64_t x_stride = x_.row_stride;
    if (x_.col_stride != 1) {
      copy_rows(x, x_.row_stride, x_.col_stride, n, d_, rows_.data(), stride_);
      x = rows_.data(), x_stride = stride_;
    }
    // Twice: far from zero the first means are off by a rounding of the offset, which the second ones see.
    std::fill(centre_.begin(), centre_.end(), T(0));
    centre_rows<T, false>(x, x_stride, centre_.data(), n, d_, rows_.data(), stride_, error_.data());
    std::copy(error_.begin(), error_.begin() + d_, centre_.begin());
    centre_rows<T, true>(x, x_stride, centre_.data(), n, d_, rows_.data(), stride_, error_.data());
    const bool is_first = group.n == 0;
    const double weight = group.n * n / (group.n + n), step = n / (group.n + n);
    for (int j = 0; j < d_; ++j) {
      minus_error_[j] = -n * error_[j];
      if (is_first) group.first[j] = double(centre_[j]);
      between_[j] = (double(centre_[j]) - group.first[j]) + error_[j] - group.shift[j];
      weighted_[j] = weight * between_[j];
      group.shift[j] += is_first ? error_[j] : step * between_[j];
    }
    if (is_first) std::fill(weighted_.begin(), weighted_.end(), 0.0);
    add_scatter(
        ScatterBlock<T>{
            rows_.data(), stride_, n, d_, {weighted_.data(), minus_error_.data()}, {between_.data(), error_.data()}},
        is_first, group.scatter.data());
    group.n += n;
  }

  const Matrix& x_;
  const int d_;
  const int64_t stride_;
  AlignedBuffer<T> rows_;
  std::vector<T> centre_;
  std::vector<double> between_, weighted_, error_, minus_error_;
};

void merge(std::vector<Group>& groups, const MomentsParams& p, double* mean, double* cov,
           const ParallelFor& parallel_for) {
  const int d = p.d;
  // First the means, of all groups as differences from one number, then their spread about the common mean.
  std::vector<double> common(d, 0.0);
  for (Group& group : groups) {
    for (int j = 0; j < d; ++j) {
      group.shift[j] += group.first[j] - groups[0].first[j];
      common[j] += group.n / double(p.N) * group.shift[j];
    }
  }
  for (int j = 0; j < d; ++j) mean[j] = groups[0].first[j] + common[j];
  for (Group& group : groups) {
    for (int j = 0; j < d; ++j) group.shift[j] -= common[j];
  }
  parallel_for(d, 1 + (1 << 16) / (d * int64_t(groups.size())), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double* out = cov + i * d;
      std::fill(out + i, out + d, 0.0);
      for (const Group& group : groups) {
        const double between = group.n * group.shift[i];
        for (int64_t j = i, end; j < d; j = end) {  // panel by panel
          end = std::min<int64_t>((j / kScatterColumns + 1) * kScatterColumns, d);
          const double* own = group.scatter.data() + scatter_index(i, j) - j;
          for (int64_t k = j; k < end; ++k) out[k] += own[k] + between * group.shift[k];
        }
      }
      for (int64_t j = i; j < d; ++j) out[j] /= p.divisor;
    }
  });
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j < i; ++j) cov[int64_t(i) * d + j] = cov[int64_t(j) * d + i];
  }
}

template <class T>
void moments_in(const MomentsParams& p, double* mean, double* cov, const ParallelFor& parallel_for) {
  const int64_t blocks = (p.N + kMomentRows - 1) / kMomentRows;
  const int64_t most = std::clamp<int64_t>(kGroupBytes / (scatter_numbers(p.d) * 8), 1, kMaxGroups);
  // Merging a group costs d^2 numbers, a block of rows kMomentRows times that.
  const int64_t group_blocks = std::max(kGroupBlocks, (blocks + most - 1) / most);
  std::vector<Group> groups((blocks + group_blocks - 1) / group_blocks);
  parallel_for(int64_t(groups.size()), 1, [&](int64_t begin, int64_t end) {
    GroupSummer<T> summer(p.x, p.d);
    for (int64_t g = begin; g < end; ++g) {
      groups[g].scatter.reserve(scatter_numbers(p.d));
      const int64_t rows = group_blocks * kMomentRows;
      summer.add_rows(g * rows, std::min(p.N, (g + 1) * rows), groups[g]);
    }
  });
  merge(groups, p, mean, cov, parallel_for);
}

}  // namespace

void moments(const MomentsParams& params, double* mean, double* cov, const ParallelFor& parallel_for) {
  if (params.N == 0) {
    std::fill(mean, mean + params.d, 0.0);
    std::fill(cov, cov + int64_t(params.d) * params.d, 0.0 / params.divisor);
  } else if (params.x.dtype == DType::kFloat64) {
    moments_in<double>(params, mean, cov, parallel_for);
  } else {
    moments_in<float>(params, mean, cov, parallel_for);
  }
}

}  // namespace vqdm::cpu
