// A small matrix product whose sums stay in vector registers: the inner loop of moments and of its gradient.

#pragma once

#include <cstdint>
#include <cstring>

namespace vqdm::cpu {

// The anonymous namespace keeps the linker from merging, say, an AVX-512 copy into the portable kernel.
namespace {

// sums_iv = sum_k a[i a_row + k a_step] b[k b_row + v lanes ...], from k = 0 up; a tile of kRows x kVectors registers
// of kBytes, so that each k costs kRows + kVectors loads for kRows kVectors multiply-adds. `store` gets each row's
// numbers.
template <class T, int kBytes, int kRows, int kVectors, class Store>
[[gnu::always_inline]] inline void tile_product(const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_row,
                                                int64_t num_k, Store&& store) {
  constexpr int kLanes = kBytes / int(sizeof(T));
  typedef T Vec __attribute__((vector_size(kBytes)));
  Vec sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[i][v] = Vec{};
  }
  for (int64_t k = 0; k < num_k; ++k, a += a_step, b += b_row) {
    Vec right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) std::memcpy(&right[v], b + v * kLanes, sizeof(Vec));
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[i][v] += a[i * a_row] * right[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    T row[kVectors * kLanes];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) std::memcpy(row + v * kLanes, &sums[i][v], sizeof(Vec));
    store(i, row);
  }
}

}  // namespace
}  // namespace vqdm::cpu
