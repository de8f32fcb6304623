#include "code_sums.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>

#include "clones.h"
#include "default_float_mode.h"

namespace vqdm::cpu {
namespace {

constexpr int64_t kRowsPerRange = 8192;           // fewer are counted sooner than another thread wakes up
constexpr int64_t kSharedRows = 16 * kChunkRows;  // a code with more rows is summed by several threads
constexpr int64_t kNumbersPerTask = 1 << 15;
constexpr int kAhead = 16;

typedef float Float8 __attribute__((vector_size(32)));
typedef double Double8 __attribute__((vector_size(64)));

// The sums of 8 kBlocks columns over rows[0 .. n), from left to right, starting from 0.
template <int kBlocks>
__attribute__((always_inline)) inline void sum_columns(const float* z, int64_t row_stride, const int64_t* rows,
                                                       int64_t n, Double8* sum) {
  for (int b = 0; b < kBlocks; ++b) sum[b] = Double8{};
  for (int64_t i = 0; i < n; ++i) {
    // The rows of a code lie anywhere, and the next ones are known.
    for (int b = 0; b < kBlocks; b += 2) __builtin_prefetch(z + rows[i + kAhead] * row_stride + 8 * b);
    for (int b = 0; b < kBlocks; ++b) {
      Float8 x;
      std::memcpy(&x, z + rows[i] * row_stride + 8 * b, sizeof x);
      sum[b] += __builtin_convertvector(x, Double8);
    }
  }
}

template <int kBlocks>
__attribute__((always_inline)) inline void sum_chunks_of_columns(const float* z, int64_t row_stride,
                                                                 const int64_t* rows, int64_t n, double* out) {
  Double8 total[kBlocks], chunk[kBlocks];
  sum_columns<kBlocks>(z, row_stride, rows, std::min<int64_t>(n, kChunkRows), total);
  for (int64_t i = kChunkRows; i < n; i += kChunkRows) {
    sum_columns<kBlocks>(z, row_stride, rows + i, std::min<int64_t>(n - i, kChunkRows), chunk);
    for (int b = 0; b < kBlocks; ++b) total[b] += chunk[b];
  }
  std::memcpy(out, total, sizeof total);
}

// The sum, in chunks, of n rows of d adjacent floats; sums stay in registers. `rows` may be read kAhead beyond n.
VQDM_CLONES void sum_float_rows(const float* z, int64_t row_stride, const int64_t* rows, int64_t n, int d,
                                double* total) {
  int j = 0;
  for (; j + 32 <= d; j += 32) sum_chunks_of_columns<4>(z + j, row_stride, rows, n, total + j);
  for (; j + 16 <= d; j += 16) sum_chunks_of_columns<2>(z + j, row_stride, rows, n, total + j);
  for (; j + 8 <= d; j += 8) sum_chunks_of_columns<1>(z + j, row_stride, rows, n, total + j);
  for (; j < d; ++j) {
    for (int64_t begin = 0; begin < n || begin == 0; begin += kChunkRows) {
      double chunk = 0;
      for (int64_t i = begin; i < std::min(n, begin + kChunkRows); ++i) chunk += double(z[rows[i] * row_stride + j]);
      total[j] = begin == 0 ? chunk : total[j] + chunk;
    }
  }
}

VQDM_CLONES void add(const double* x, int d, double* sum) {
  for (int j = 0; j < d; ++j) sum[j] += x[j];
}

// Sums the rows of one problem: all heads together, with h K + k as the code of a row of head h.
class Sorted {
 public:
  Sorted(const CodeSumsParams& params, const ParallelFor& parallel_for)
      : p_(params),
        rows_(int64_t(params.z.size()) * params.N),
        codes_(int64_t(params.z.size()) * params.K),
        // The counts of all ranges together take no more memory than rows or codes do.
        ranges_(std::clamp<int64_t>(rows_ / std::max(codes_, kRowsPerRange), 1, params.threads)) {
    std::vector<int64_t> next(ranges_ * codes_, 0);  // per range and code: first the count, then where its rows go
    std::atomic<bool> inside = true;
    parallel_for(ranges_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        if (!count(r, &next[r * codes_])) inside = false;
      }
    });
    if (!inside) throw_outside();

    first_.resize(codes_ + 1);
    int64_t position = 0;
    for (int64_t c = 0; c < codes_; ++c) {
      first_[c] = position;
      for (int64_t r = 0; r < ranges_; ++r) {
        const int64_t count = next[r * codes_ + c];
        next[r * codes_ + c] = position;
        position += count;
      }
      if (position - first_[c] > kSharedRows) shared_.push_back(c);
    }
    first_[codes_] = position;

    order_ = std::make_unique_for_overwrite<int64_t[]>(rows_ + kAhead);
    std::fill_n(&order_[rows_], kAhead, 0);
    parallel_for(ranges_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) place(r, &next[r * codes_]);
    });
  }

  void write_counts(int64_t* counts) const {
    for (int64_t c = 0; c < codes_; ++c) counts[c] = count_of(c);
  }

  template <typename Out>
  void write_sums(Out* sums, const ParallelFor& parallel_for) const {
    std::vector<int64_t> chunk_offset{0};  // of each shared code, in chunks
    for (int64_t c : shared_) chunk_offset.push_back(chunk_offset.back() + num_chunks(c));
    std::vector<double> chunk_sums(chunk_offset.back() * p_.d);

    // Work is shared out by rows and codes: code c owns the positions from first_[c] + c to that of the next.
    parallel_for(rows_ + codes_, std::max<int64_t>(1, kNumbersPerTask / std::max(p_.d, 1)),
                 [&](int64_t begin, int64_t end) {
                   const DefaultFloatMode mode;
                   std::vector<double> total(p_.d), scratch(2 * p_.d);
                   for (int64_t c = first_code_at(begin); c < codes_ && first_[c] + c < end; ++c) {
                     if (count_of(c) == 0) {
                       std::fill_n(sums + c * p_.d, p_.d, Out(0));
                     } else if (count_of(c) <= kSharedRows) {
                       sum_rows(c, first_[c], first_[c + 1], scratch, total.data());
                       round_to(total.data(), sums + c * p_.d);
                     }
                   }
                   for (size_t s = 0; s < shared_.size(); ++s) {
                     const int64_t c = shared_[s], position = first_[c] + c;
                     const auto chunks_before = [&](int64_t where) {  // that start before this position
                       return std::clamp<int64_t>((where - position + kChunkRows - 1) / kChunkRows, 0, num_chunks(c));
                     };
                     for (int64_t i = chunks_before(begin); i < chunks_before(end); ++i) {
                       const int64_t first = first_[c] + i * kChunkRows;
                       sum_rows(c, first, std::min(first + kChunkRows, first_[c + 1]), scratch,
                                chunk_sums.data() + (chunk_offset[s] + i) * p_.d);
                     }
                   }
                 });

    const DefaultFloatMode mode;
    for (size_t s = 0; s < shared_.size(); ++s) {
      double* total = chunk_sums.data() + chunk_offset[s] * p_.d;
      for (int64_t i = 1; i < num_chunks(shared_[s]); ++i) add(total + i * p_.d, p_.d, total);
      round_to(total, sums + shared_[s] * p_.d);
    }
  }

 private:
  int64_t count_of(int64_t c) const { return first_[c + 1] - first_[c]; }
  int64_t num_chunks(int64_t c) const { return (count_of(c) + kChunkRows - 1) / kChunkRows; }

  // Calls f(head, row, index) for the rows of a range in their order, until f returns false.
  template <typename F>
  bool each_row(int64_t range, F&& f) const {
    const int64_t end = rows_ * (range + 1) / ranges_;
    for (int64_t i = rows_ * range / ranges_; i < end;) {
      const int64_t head = i / p_.N, begin = i % p_.N, last = std::min(p_.N, begin + end - i);
      const int64_t* indices = p_.indices[head];
      for (int64_t row = begin; row < last; ++row) {
        if (!f(head, row, indices[row * p_.index_stride])) return false;
      }
      i += last - begin;
    }
    return true;
  }

  bool count(int64_t range, int64_t* counts) const {
    return each_row(range, [&](int64_t head, int64_t, int64_t index) {
      if (uint64_t(index) >= uint64_t(p_.K)) return false;
      ++counts[head * p_.K + index];
      return true;
    });
  }

  void place(int64_t range, int64_t* next) {
    each_row(range, [&](int64_t head, int64_t row, int64_t index) {
      order_[next[head * p_.K + index]++] = row;
      return true;
    });
  }

  [[noreturn]] void throw_outside() const {
    int64_t low = std::numeric_limits<int64_t>::max(), high = std::numeric_limits<int64_t>::min();
    for (int64_t r = 0; r < ranges_; ++r) {
      each_row(r, [&](int64_t, int64_t, int64_t index) {
        low = std::min(low, index);
        high = std::max(high, index);
        return true;
      });
    }
    throw std::invalid_argument("code_sums: expected indices in [0, " + std::to_string(p_.K) + "), got values from " +
                                std::to_string(low) + " to " + std::to_string(high));
  }

  // The lowest code that starts at this position or after it.
  int64_t first_code_at(int64_t position) const {
    int64_t low = 0, high = codes_;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (first_[middle] + middle < position) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  // The sum, in chunks, of the rows order_[begin .. end) of code c.
  void sum_rows(int64_t c, int64_t begin, int64_t end, std::vector<double>& scratch, double* total) const {
    const Matrix& z = p_.z[c / p_.K];
    if (z.dtype == DType::kFloat32 && z.col_stride == 1) {
      return sum_float_rows(z.row<float>(0), z.row_stride, &order_[begin], end - begin, p_.d, total);
    }
    double *chunk = scratch.data(), *row = chunk + p_.d;
    std::fill_n(total, p_.d, 0.0);  // and so its first chunk is added to 0, which changes no sum that started from 0
    for (int64_t first = begin; first < end; first += kChunkRows) {
      std::fill_n(chunk, p_.d, 0.0);
      for (int64_t i = first; i < std::min(first + kChunkRows, end); ++i) {
        z.load(order_[i], p_.d, row);
        add(row, p_.d, chunk);
      }
      add(chunk, p_.d, total);
    }
  }

  template <typename Out>
  void round_to(const double* total, Out* out) const {
    for (int j = 0; j < p_.d; ++j) out[j] = Out(total[j]);
  }

  const CodeSumsParams& p_;
  const int64_t rows_, codes_, ranges_;
  std::vector<int64_t> first_;        // per code: where its rows begin in order_; and the end
  std::unique_ptr<int64_t[]> order_;  // row numbers within their head, sorted by code, in order within each
  std::vector<int64_t> shared_;       // codes whose chunks are summed by several threads
};

}  // namespace

template <typename Out>
void code_sums(const CodeSumsParams& params, Out* sums, int64_t* counts, const ParallelFor& parallel_for) {
  const Sorted sorted(params, parallel_for);
  sorted.write_counts(counts);
  sorted.write_sums(sums, parallel_for);
}

template void code_sums<float>(const CodeSumsParams&, float*, int64_t*, const ParallelFor&);
template void code_sums<double>(const CodeSumsParams&, double*, int64_t*, const ParallelFor&);

}  // namespace vqdm::cpu
