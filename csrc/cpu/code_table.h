// The codes of one search, and those of them that are never chosen.

#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <mutex>
#include <vector>

#include "matrix.h"

namespace vqdm::cpu {

class CodeTable {
 public:
  // e: [K, d] with K >= 1, d >= 1; bias: [K] or null data. Both must outlive the table.
  CodeTable(const Matrix& e, const Matrix& bias, int64_t K, int d) : e(e), bias(bias), K(K), d(d), excluded_(K, 0) {}

  double bias_of(int64_t k) const {
    double value = 0;
    if (bias.data != nullptr) bias.load(k, 1, &value);
    return value;
  }

  // Invalid codes, and once they were looked for, duplicates. Other threads may ask meanwhile: for whether a D has to
  // be computed either answer is right, and for nothing else.
  bool excluded(int64_t k) const { return __atomic_load_n(&excluded_[k], __ATOMIC_RELAXED); }
  void exclude(int64_t k) { __atomic_store_n(&excluded_[k], uint8_t(1), __ATOMIC_RELAXED); }

  // Excludes every code that equals one of lower index, bias included: it can never win. Costs a pass over the codes,
  // the first time.
  void exclude_duplicates() {
    std::call_once(duplicates_once_, [this] { find_duplicates(); });
  }

  const Matrix e, bias;
  const int64_t K;
  const int d;

 private:
  void find_duplicates();

  std::vector<uint8_t> excluded_;  // [K]
  std::once_flag duplicates_once_;
};

}  // namespace vqdm::cpu
