#include "scatter_block.h"

#include "cpu_features.h"
#include "tile_product.h"

namespace vqdm::cpu {
namespace {

// Down one panel of columns after the other: the panel stays in the first-level cache.
template <class T, int kBytes, int kRows, int kVectors>
[[gnu::always_inline]] inline void add_tiles(const ScatterBlock<T>& block, bool first, double* scatter) {
  constexpr int kColumns = kVectors * kBytes / int(sizeof(T));
  static_assert(kScatterColumns % kColumns == 0 && kRows <= kScatterRows);
  for (int j0 = 0; j0 < block.d; j0 += kColumns) {
    for (int i0 = 0; i0 < block.d && i0 < j0 + kColumns; i0 += kRows) {
      tile_product<T, kBytes, kRows, kVectors>(
          block.x + i0, 1, block.stride, block.x + j0, block.stride, block.n, [&](int i, const T* row) {
            double* out = scatter + scatter_index(i0 + i, j0);
            const double left0 = block.left[0][i0 + i], left1 = block.left[1][i0 + i];
            const double *right0 = block.right[0] + j0, *right1 = block.right[1] + j0;
            for (int j = 0; j < kColumns; ++j) {
              const double sum = double(row[j]) + left0 * right0[j] + left1 * right1[j];
              out[j] = first ? sum : out[j] + sum;
            }
          });
    }
  }
}

template <class T, int kBytes, int kRows, int kVectors>
[[gnu::always_inline]] inline void add_block(const ScatterBlock<T>& block, bool first, double* scatter) {
  if (block.d * int(sizeof(T)) <= kBytes) {
    add_tiles<T, kBytes, kRows, 1>(block, first, scatter);
  } else {
    add_tiles<T, kBytes, kRows, kVectors>(block, first, scatter);
  }
}

#if defined(VQDM_X86_KERNELS)
// 32 vector registers of 64 bytes, 16 of 32 bytes.
template <class T>
[[gnu::target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]] void add_avx512(const ScatterBlock<T>& block, bool first,
                                                                               double* scatter) {
  add_block<T, 64, 8, 2>(block, first, scatter);
}
template <class T>
[[gnu::target("avx2,fma")]] void add_avx2(const ScatterBlock<T>& block, bool first, double* scatter) {
  add_block<T, 32, 5, 2>(block, first, scatter);
}
#endif

template <class T>
void add_portable(const ScatterBlock<T>& block, bool first, double* scatter) {
  add_block<T, 16, 4, 2>(block, first, scatter);
}

}  // namespace

template <class T>
void add_scatter(const ScatterBlock<T>& block, bool first, double* scatter) {
#if defined(VQDM_X86_KERNELS)
  if (usable_features().avx512) return add_avx512(block, first, scatter);
  if (usable_features().avx2_fma) return add_avx2(block, first, scatter);
#endif
  add_portable(block, first, scatter);
}

template void add_scatter(const ScatterBlock<float>&, bool, double*);
template void add_scatter(const ScatterBlock<double>&, bool, double*);

}  // namespace vqdm::cpu
