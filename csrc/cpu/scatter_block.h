// Sums of products of a block of rows, the inner loop of moments.
//
//   scatter_ij += sum_r x_ri x_rj + sum_t left_ti right_tj          for i <= j < d
//
// The sums over the rows are taken in T, from the first row to the last, and then added to scatter in float64.
//
// Of scatter only the upper triangle is kept, as panels of kScatterColumns columns one after the other, each with the
// rows down to the diagonal, and kScatterRows more, since tiles reach beyond it.

#pragma once

#include <cstdint>

namespace vqdm::cpu {

inline constexpr int kScatterColumns = 32;
inline constexpr int kScatterRows = 8;
// Columns of x, and numbers of left and right, that may be read; what they hold beyond d does not matter.
inline int64_t scatter_columns(int d) {
  return (int64_t(d) + kScatterRows + kScatterColumns - 1) / kScatterColumns * kScatterColumns;
}
inline int64_t scatter_panel(int64_t panel) {  // where it begins
  return kScatterColumns * (panel * (panel + 1) / 2 * kScatterColumns + panel * kScatterRows);
}
inline int64_t scatter_numbers(int d) {
  return scatter_panel((int64_t(d) + kScatterColumns - 1) / kScatterColumns);
}
inline int64_t scatter_index(int64_t i, int64_t j) {  // i <= j
  return scatter_panel(j / kScatterColumns) + i * kScatterColumns + j % kScatterColumns;
}

template <class T>
struct ScatterBlock {
  const T* x;  // [n, scatter_columns(d)]
  int64_t stride;
  int n, d;
  const double* left[2];   // [scatter_columns(d)]
  const double* right[2];  // [scatter_columns(d)]
};

// scatter [scatter_numbers(d)]; `first` overwrites what it holds.
template <class T>
void add_scatter(const ScatterBlock<T>& block, bool first, double* scatter);

}  // namespace vqdm::cpu
