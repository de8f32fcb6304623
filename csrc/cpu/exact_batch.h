// Exact distances of single (row, code) pairs, collected over a block of rows and computed kPairs at a time.

#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "code_table.h"
#include "row_math.h"

namespace vqdm::cpu {

struct Best {
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  double dist2 = std::numeric_limits<double>::infinity();
  int64_t index = kNone;  // gives way even to a code at an infinite distance
};

class ExactBatch {
 public:
  ExactBatch(const CodeTable& codes, const RowMath& math, const Matrix& z);

  // Lets codes [first, last), but excluded ones, compete for `best` of row i of z. Takes effect with flush() at last.
  void add(int64_t i, int64_t first, int64_t last, Best* best) {
    const float* row = direct_ ? z_.row<float>(i) : nullptr;
    for (int64_t k = first; k < last; ++k) {
      if (codes_.excluded(k)) continue;
      k_[count_] = k;
      best_[count_] = best;
      if (direct_) {
        z_floats_[count_] = row;
        e_floats_[count_] = codes_.e.row<float>(k);
      } else {
        widen(i, k);
      }
      if (++count_ == kPairs) flush();
    }
  }
  void flush();

  // Contiguous float32 rows are read where they stand, others are widened first.
  static bool reads_in_place(const Matrix& z, const Matrix& e) {
    return z.dtype == DType::kFloat32 && z.col_stride == 1 && e.dtype == DType::kFloat32 && e.col_stride == 1;
  }

 private:
  void widen(int64_t i, int64_t k);

  const CodeTable& codes_;
  const RowMath& math_;
  const Matrix& z_;
  const bool direct_;  // reads in place
  int count_ = 0;
  int64_t k_[kPairs];
  Best* best_[kPairs];
  const float *z_floats_[kPairs] = {}, *e_floats_[kPairs] = {};
  const double *z_doubles_[kPairs] = {}, *e_doubles_[kPairs] = {};
  int64_t last_row_ = -1;
  int last_slot_ = 0;
  std::vector<double> rows_, code_rows_;  // [kPairs + 1, d], [kPairs, d]
};

}  // namespace vqdm::cpu
