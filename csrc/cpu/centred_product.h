// The gradient of moments: out = (x - centre) A + shift.
//
// Products and sums are in T, over the columns of x from the first to the last: a row's result depends on that row
// alone.

#pragma once

#include <cstdint>
#include <vector>

#include "aligned_buffer.h"
#include "matrix.h"

namespace vqdm::cpu {

template <class T>
class CentredProduct {
 public:
  // centre [d], a [d, d], shift [d]; copied.
  CentredProduct(int d, const double* centre, const double* a, const double* shift);

  // Rows begin .. end - 1 of x [N, d], of type T, into out [N, d].
  void run(const Matrix& x, int64_t begin, int64_t end, T* out) const;

 private:
  int d_;
  std::vector<T> centre_, shift_;
  AlignedBuffer<T> panels_;  // of kPanelColumns columns of a each, row after row
};

}  // namespace vqdm::cpu
