#include "exact_batch.h"

#include <cmath>
#include <limits>

namespace vqdm::cpu {

ExactBatch::ExactBatch(const CodeTable& codes, const RowMath& math, const Matrix& z)
    : codes_(codes), math_(math), z_(z), direct_(reads_in_place(z, codes.e)) {
  if (direct_) return;
  rows_.resize(int64_t(kPairs + 1) * codes.d);
  code_rows_.resize(int64_t(kPairs) * codes.d);
}

void ExactBatch::widen(int64_t i, int64_t k) {
  const int64_t d = codes_.d;
  if (i != last_row_) {  // one slot more than pairs: the last row of the batch before may go on being used
    last_row_ = i;
    last_slot_ = (last_slot_ + 1) % (kPairs + 1);
    z_.load(i, codes_.d, &rows_[last_slot_ * d]);
  }
  codes_.e.load(k, codes_.d, &code_rows_[count_ * d]);
  z_doubles_[count_] = &rows_[last_slot_ * d];
  e_doubles_[count_] = &code_rows_[count_ * d];
}

void ExactBatch::flush() {
  if (count_ == 0) return;
  for (int i = count_; i < kPairs; ++i) {  // the missing pairs repeat the first
    z_floats_[i] = z_floats_[0], e_floats_[i] = e_floats_[0];
    z_doubles_[i] = z_doubles_[0], e_doubles_[i] = e_doubles_[0];
  }
  double sums[kPairs];
  if (direct_) {
    math_.float_distances(z_floats_, e_floats_, codes_.d, sums);
  } else {
    math_.double_distances(z_doubles_, e_doubles_, codes_.d, sums);
  }
  if (codes_.bias.data != nullptr) {
    for (int i = 0; i < count_; ++i) {
      sums[i] += codes_.bias_of(k_[i]);
      if (std::isnan(sums[i])) sums[i] = std::numeric_limits<double>::infinity();  // an overflow and a bias of -Inf
    }
  }
  Best best = *best_[0];  // of the row at hand, in registers
  for (int i = 0; i < count_; ++i) {
    if (i > 0 && best_[i] != best_[i - 1]) {
      *best_[i - 1] = best;
      best = *best_[i];
    }
    // Without a branch, which nothing could predict.
    const bool nearer = (sums[i] < best.dist2) | ((sums[i] == best.dist2) & (k_[i] < best.index));
    best.dist2 = nearer ? sums[i] : best.dist2;
    best.index = nearer ? k_[i] : best.index;
  }
  *best_[count_ - 1] = best;
  count_ = 0;
}

}  // namespace vqdm::cpu
