#include "centred_product.h"

#include <algorithm>

#include "clones.h"
#include "cpu_features.h"
#include "tile_product.h"

namespace vqdm::cpu {
namespace {

constexpr int kPanelColumns = 32;
constexpr int kBlockRows = 40;  // of x at a time, centred: whole tiles of 4, 5 and 8 rows

template <class T>
struct Block {
  const T* rows;  // [kBlockRows, d] centred
  int n, d;
  const T *panels, *shift;  // shift is padded to whole panels
  T* out;                   // [n, d]
};

template <class T, int kBytes, int kRows, int kVectors>
[[gnu::always_inline]] inline void run_block(const Block<T>& block) {
  constexpr int kColumns = kVectors * kBytes / int(sizeof(T));
  static_assert(kPanelColumns % kColumns == 0 && kBlockRows % kRows == 0);
  for (int j0 = 0; j0 < block.d; j0 += kColumns) {
    const T* panel = block.panels + int64_t(j0 / kPanelColumns) * block.d * kPanelColumns + j0 % kPanelColumns;
    const int columns = std::min(kColumns, block.d - j0);
    for (int i0 = 0; i0 < block.n; i0 += kRows) {
      tile_product<T, kBytes, kRows, kVectors>(block.rows + int64_t(i0) * block.d, block.d, 1, panel, kPanelColumns,
                                               block.d, [&](int i, T* row) {
                                                 if (i0 + i >= block.n) return;
                                                 for (int j = 0; j < kColumns; ++j) row[j] += block.shift[j0 + j];
                                                 T* out = block.out + int64_t(i0 + i) * block.d + j0;
                                                 if (columns == kColumns) {
                                                   std::memcpy(out, row, sizeof(T) * kColumns);
                                                 } else {
                                                   for (int j = 0; j < columns; ++j) out[j] = row[j];
                                                 }
                                               });
    }
  }
}

template <class T, int kBytes, int kRows, int kVectors>
[[gnu::always_inline]] inline void run_narrow_or_wide(const Block<T>& block) {
  if (block.d * int(sizeof(T)) <= kBytes) {
    run_block<T, kBytes, kRows, 1>(block);
  } else {
    run_block<T, kBytes, kRows, kVectors>(block);
  }
}

#if defined(VQDM_X86_KERNELS)
template <class T>
[[gnu::target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]] void run_avx512(const Block<T>& block) {
  run_narrow_or_wide<T, 64, 8, 2>(block);
}
template <class T>
[[gnu::target("avx2,fma")]] void run_avx2(const Block<T>& block) {
  run_narrow_or_wide<T, 32, 5, 2>(block);
}
#endif

template <class T>
void run_one(const Block<T>& block) {
#if defined(VQDM_X86_KERNELS)
  if (usable_features().avx512) return run_avx512(block);
  if (usable_features().avx2_fma) return run_avx2(block);
#endif
  run_narrow_or_wide<T, 16, 4, 2>(block);
}

template <class T>
VQDM_CLONES void centre_rows(const T* x, int64_t row_stride, int64_t col_stride, int n, int d, const T* centre,
                             T* out) {
  for (int r = 0; r < n; ++r) {
    const T* from = x + r * row_stride;
    T* to = out + int64_t(r) * d;
    if (col_stride == 1) {
      for (int j = 0; j < d; ++j) to[j] = from[j] - centre[j];
    } else {
      for (int j = 0; j < d; ++j) to[j] = from[j * col_stride] - centre[j];
    }
  }
}

}  // namespace

template <class T>
CentredProduct<T>::CentredProduct(int d, const double* centre, const double* a, const double* shift)
    : d_(d), centre_(centre, centre + d), shift_(shift, shift + d) {
  const int64_t panels = (int64_t(d) + kPanelColumns - 1) / kPanelColumns;
  shift_.resize(panels * kPanelColumns, T(0));
  T* out = panels_.reserve(panels * d * kPanelColumns);
  for (int64_t p = 0; p < panels; ++p) {
    for (int i = 0; i < d; ++i) {
      for (int64_t j = p * kPanelColumns; j < (p + 1) * kPanelColumns; ++j)
        *out++ = j < d ? T(a[int64_t(i) * d + j]) : T(0);
    }
  }
}

template <class T>
void CentredProduct<T>::run(const Matrix& x, int64_t begin, int64_t end, T* out) const {
  AlignedBuffer<T> rows(int64_t(kBlockRows) * d_);
  std::fill(rows.data(), rows.data() + int64_t(kBlockRows) * d_, T(0));
  for (int64_t first = begin; first < end; first += kBlockRows) {
    const int n = int(std::min<int64_t>(kBlockRows, end - first));
    centre_rows(x.row<T>(first), x.row_stride, x.col_stride, n, d_, centre_.data(), rows.data());
    run_one(Block<T>{rows.data(), n, d_, panels_.data(), shift_.data(), out + first * d_});
  }
}

template class CentredProduct<float>;
template class CentredProduct<double>;

}  // namespace vqdm::cpu
