// What all kernels of pair_costs share: the problem on the device, where a thread stands in a tile, and costs.
//
// A tile is 128 rows of x by 128 codes of y; 4 x 2 warps have 32 rows and 64 codes each, a thread 4 rows and 16 codes,
// four of which follow each other.

#pragma once

#include <math.h>

#include "lanes.cuh"
#include "operand.cuh"
#include "pair_costs.h"
#include "simt.cuh"

namespace vqdm::cuda {

inline constexpr int kPairTile = 128;
inline constexpr int kPairThreads = 256;
inline constexpr int kRowsOfThread = 4, kCodesOfThread = 16;
inline constexpr int kThreadsOfRow = kPairTile / kCodesOfThread;
inline constexpr double kLn2 = 0.6931471805599453, kLog2E = 1.4426950408889634;

// x' = (x - centre) unit. The unit, a power of two, brings codes to a norm of about one.
struct PairFacts {  // of a head
  double unit;
  double reference;  // the largest finite weight of pair_logsumexp; 0 where there is none
};

struct Choice {
  double value;
  int64_t index;  // -1: none
};

template <typename T>
struct PairProblem : PairParams {
  PairOp op;
  void* out;
  int64_t row_tiles, code_tiles;
  int splits;       // of the codes
  int depth_steps;  // of 16 dimensions, for tensor cores; else 0
  T near_share, near_floor;
  // In the workspace, head after head:
  PairFacts* facts;  // [heads]
  double* centre;    // [heads, d], numbers of type T
  // Packed, tile after tile, in units of the centred data:
  void* packed_x;
  void* packed_y;
  T* row_norm2;     // [heads, rows] ||x'||^2, NaN where x is not finite
  T* row_near;      // [heads, rows] near_share ||x'||^2 + near_floor; Inf: no product of this row is to be trusted
  T* row_factor;    // [heads, rows] which, by a product of packed rows, gives -2 x' . y'
  T* code_norm2;    // [heads, codes] ||y'||^2, NaN where y is not finite, -Inf where no product is to be trusted
  T* code_weight;   // [heads, codes] of pair_logsumexp: (weight - reference) log2 e; of pair_sums: 1, and 0 beyond the
                    // last code; of pair_argmin: bias, in units of the centred costs
  double* partial;  // [heads, N, splits] of pair_logsumexp; [heads, row_tiles, splits, 2] of pair_sums
  T* bound;         // [heads, N, splits] of pair_argmin: no code that may win is above it
  Choice* choices;  // [heads, N, splits]
};

// What a unit of cost is in units of the centred data.
template <typename T>
__device__ inline double cost_unit(const PairProblem<T>& p, int64_t head) {
  const double unit = p.facts[head].unit;
  return p.squared ? unit * unit : unit;
}

// ---- where a block and a thread are ----

struct PairItem {  // of work, a block's
  int64_t head, row_tile;
  int split;
  int64_t tile_begin, tile_end;  // of codes
};

template <typename T>
__device__ inline PairItem item_of(const PairProblem<T>& p, int64_t number) {
  const int64_t s = number % p.splits, tile = number / p.splits;
  return {tile / p.row_tiles, tile % p.row_tiles, int(s), s * p.code_tiles / p.splits,
          (s + 1) * p.code_tiles / p.splits};
}

// Which member of 16 codes, or rows, stands in a slot of a fragment product: such that the codes of a thread, two each
// of two products, follow each other.
__device__ inline int slot_of(int member) {
  return member % 4 / 2 * 8 + member / 4 * 2 + member % 2;
}
__device__ inline int row_in_tile(int r) {  // r < kRowsOfThread
  const int group = simt::lane_index() / 4;
  return simt::warp_index() / 2 * 32 + r / 2 * 16 + group / 2 * 4 + r % 2 * 2 + group % 2;
}
__device__ inline int code_in_tile(int c) {  // c < kCodesOfThread
  return simt::warp_index() % 2 * 64 + c / 4 * 16 + simt::lane_index() % 4 * 4 + c % 4;
}
// Among the threads of a row.
__device__ inline int place_in_row() {
  return simt::warp_index() % 2 * 4 + simt::lane_index() % 4;
}

// A thread's products, as tensor cores give them.
template <typename T>
using PairProducts = T[kRowsOfThread / 2][kCodesOfThread / 2][4];

template <typename T>
__device__ inline T& at(PairProducts<T>& products, int r, int c) {
  return products[r / 2][c / 2][r % 2 * 2 + c % 2];
}

// ---- numbers ----

template <typename T>
struct alignas(16) Four {
  T x[4];
};

// Of the thread's codes, four by four.
template <typename T>
struct OfCodes {
  Four<T> four[kCodesOfThread / 4];
  __device__ OfCodes(const T* numbers, int64_t tile) {
    const T* first = numbers + tile * kPairTile + code_in_tile(0);
#pragma unroll
    for (int i = 0; i < kCodesOfThread / 4; ++i) four[i] = *reinterpret_cast<const Four<T>*>(first + 16 * i);
  }
  __device__ T operator[](int c) const { return four[c / 4].x[c % 4]; }
};

template <typename T>
struct RowFacts {
  T norm2, near, factor;
};
template <typename T>
__device__ inline RowFacts<T> row_facts(simt::Shared<T> rows, int r) {
  const int i = row_in_tile(r);
  return {rows[i], rows[kPairTile + i], rows[2 * kPairTile + i]};
}

__device__ inline float fast_exp2(float x) {
  return simt::approximate_exp2(x);
}
__device__ inline double fast_exp2(double x) {
  return exp2(x);
}
__device__ inline float fast_sqrt(float x) {
  return simt::approximate_sqrt(x);
}
__device__ inline double fast_sqrt(double x) {
  return sqrt(x);
}
__device__ inline float load_as(const Operand& a, int64_t i, float) {
  return load_float(a, i);
}
__device__ inline double load_as(const Operand& a, int64_t i, double) {
  return load(a, i);
}

// ---- costs ----

// ||x' - y'||^2 from the numbers as they came.
template <typename T>
__device__ inline T direct_dist2(const PairProblem<T>& p, int64_t head, int64_t row, int64_t code, T unit) {
  const int64_t x = head * p.x.head_stride[0] + row * p.x.row_stride;
  const int64_t y = head * p.y.head_stride[0] + code * p.y.row_stride;
  T sum = 0;
#pragma unroll 4
  for (int j = 0; j < p.d; ++j) {
    const T difference =
        (load_as(p.x, x + j * p.x.col_stride, T(0)) - load_as(p.y, y + j * p.y.col_stride, T(0))) * unit;
    sum = fma(difference, difference, sum);
  }
  return sum;
}

// Turns products into squared distances. Those that are small beside ||x'||^2 have lost digits, which a root would
// make worse: they are computed directly, as are those of rows and codes that the products leave out.
template <typename T>
__device__ inline void to_dist2(const PairProblem<T>& p, const PairItem& item, int64_t tile, simt::Shared<T> rows,
                                PairProducts<T>& products) {
  const OfCodes<T> norm2(p.code_norm2 + item.head * p.code_tiles * kPairTile, tile);
  bool near = false;
#pragma unroll
  for (int r = 0; r < kRowsOfThread; ++r) {
    const RowFacts<T> row = row_facts(rows, r);
    T least = INFINITY;
#pragma unroll
    for (int c = 0; c < kCodesOfThread; ++c) {
      T& value = at<T>(products, r, c);
      value = fma(value, row.factor, norm2[c]) + row.norm2;
      least = fmin(value, least);
    }
    near |= least < row.near;
  }
  if (!near) return;
  uint64_t flagged = 0;
#pragma unroll
  for (int r = 0; r < kRowsOfThread; ++r) {
    const T limit = row_facts(rows, r).near;
#pragma unroll
    for (int c = 0; c < kCodesOfThread; ++c) {
      const bool there = tile * kPairTile + code_in_tile(c) < p.M;
      if (there && at<T>(products, r, c) < limit) flagged |= uint64_t(1) << (r * kCodesOfThread + c);
    }
  }
  const T unit = T(p.facts[item.head].unit);
  while (flagged != 0) {
    const unsigned low = unsigned(flagged);
    const int bit = low != 0 ? simt::lowest_bit(low) : 32 + simt::lowest_bit(unsigned(flagged >> 32));
    flagged &= flagged - 1;
    const int64_t row = item.row_tile * kPairTile + row_in_tile(bit / kCodesOfThread);
    const T dist2 = direct_dist2(p, item.head, row, tile * kPairTile + code_in_tile(bit % kCodesOfThread), unit);
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) {
#pragma unroll
      for (int c = 0; c < kCodesOfThread; ++c) {
        if (bit == r * kCodesOfThread + c) at<T>(products, r, c) = dist2;
      }
    }
  }
}

template <typename T>
__device__ inline void to_roots(PairProducts<T>& values) {
#pragma unroll
  for (int r = 0; r < kRowsOfThread; ++r) {
#pragma unroll
    for (int c = 0; c < kCodesOfThread; ++c) at<T>(values, r, c) = fast_sqrt(at<T>(values, r, c));
  }
}

}  // namespace vqdm::cuda
