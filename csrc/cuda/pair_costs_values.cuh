// Values of pair_argmin: bounds on those of a tile, in T, and single ones from the definition.
//
//   value_ij = (c_ij + bias_j) - noise G_ij
//
// The error of D~ = ||x'||^2 + ||y'||^2 - 2 x' . y' is at most near_share (||x'||^2 + ||y'||^2) + near_floor (see
// set_product_error() in pair_costs.cu). Where that is not so, near is Inf, or ||y'||^2 is -Inf: an interval for D is
// then [0, Inf].

#pragma once

#include "counter_random.cuh"
#include "pair_costs_problem.cuh"

namespace vqdm::cuda {

// What rounding makes of a cost, a bias and a term of noise between D and the value, relative to each: in T, by the
// approximate root, and in the float64 of the definition.
template <typename T>
inline constexpr T kValueError = sizeof(T) == sizeof(float) ? T(0x1p-20) : T(0x1p-48);

template <typename T>
struct Noise {
  T scale;        // 0: none
  T error;        // of scale G
  T most;         // that noise can take off a value, the error included
  uint64_t row0;  // of the thread's block of rows
  uint32_t head;

  __device__ Noise(const PairProblem<T>& p, const PairItem& item)
      : scale(T(load(p.factor, item.head * p.factor.row_stride) * cost_unit(p, item.head))),
        row0(uint64_t(p.first_row) + uint64_t(item.row_tile * kPairTile)),
        head(uint32_t(item.head)) {
    const T size = T(fabs(scale)), largest = T(kMostGumbel) * (1 + kValueError<T>);
    error = size * (T(sizeof(T) == sizeof(float) ? kGumbelError : 0.0f) + 2 * largest * kValueError<T>);
    most = (scale < 0 ? size * -T(kLeastGumbel) : size * largest) + error;
  }
};

__device__ inline void set_gumbel(uint32_t word, float& out) {
  out = near_gumbel(word);
}
__device__ inline void set_gumbel(uint32_t word, double& out) {
  out = gumbel(word);
}

// Kept out of line: it is long, and there are many places for it.
template <typename T>
static __device__ __noinline__ Four<T> four_gumbels(uint64_t seed, uint64_t row, uint64_t code, uint32_t head) {
  const RandomWords words = random_words(seed, row, code, head);
  Four<T> out;
  for (int i = 0; i < 4; ++i) set_gumbel(words.word[i], out.x[i]);
  return out;
}

// Turns products into bounds on values, from above or from below. Where a value cannot be less than the limit of its
// row, the noise is left out of the bound: it is then too high by no more than `most`, and above the limit all the
// same.
template <bool kUpper, typename T>
__device__ inline void to_value_bounds(const PairProblem<T>& p, const PairItem& item, int64_t tile,
                                       simt::Shared<T> rows, const Noise<T>& noise, const T* limits,
                                       PairProducts<T>& values) {
  constexpr T kSign = kUpper ? 1 : -1;
  const OfCodes<T> norm2(p.code_norm2 + item.head * p.code_tiles * kPairTile, tile);
#pragma unroll
  for (int r = 0; r < kRowsOfThread; ++r) {
    const RowFacts<T> row = row_facts(rows, r);
#pragma unroll
    for (int c = 0; c < kCodesOfThread; ++c) {
      T& value = at<T>(values, r, c);
      const T error = fma(p.near_share, T(fabs(norm2[c])), row.near);
      const T dist2 = fma(value, row.factor, norm2[c]) + row.norm2 + kSign * error;
      value = kUpper ? dist2 : fmax(dist2, T(0));  // NaN is no bound from above, and 0 is one from below
    }
  }
  if (!p.squared) to_roots(values);
  const OfCodes<T> bias(p.code_weight + item.head * p.code_tiles * kPairTile, tile);
#pragma unroll
  for (int r = 0; r < kRowsOfThread; ++r) {
#pragma unroll
    for (int c = 0; c < kCodesOfThread; ++c) {
      T& value = at<T>(values, r, c);
      value = fma(kSign * kValueError<T>, value + T(fabs(bias[c])), value + bias[c]);
    }
  }
  if (noise.scale == 0) return;
#pragma unroll
  for (int r = 0; r < kRowsOfThread; ++r) {
#pragma unroll
    for (int q = 0; q < kCodesOfThread; q += 4) {
      bool may_win = false;
#pragma unroll
      for (int c = q; c < q + 4; ++c) may_win |= !(at<T>(values, r, c) - noise.most > limits[r]);
      if (!may_win) continue;
      const Four<T> random = four_gumbels<T>(p.seed, noise.row0 + row_in_tile(r),
                                             uint64_t(tile * kPairTile + code_in_tile(q)), noise.head);
#pragma unroll
      for (int c = q; c < q + 4; ++c) {
        T& value = at<T>(values, r, c);
        value = fma(-noise.scale, random.x[c - q], value) + kSign * noise.error;
      }
    }
  }
}

// The compiler must not contract: --fmad=false, -ffp-contract=off.
template <typename T>
__device__ inline double value_of(const PairProblem<T>& p, int64_t head, int64_t row, int64_t code) {
  const int64_t x = head * p.x.head_stride[0] + row * p.x.row_stride;
  const int64_t y = head * p.y.head_stride[0] + code * p.y.row_stride;
  double sum = 0;
#pragma unroll 4
  for (int j = 0; j < p.d; ++j) {
    const double difference = load(p.x, x + j * p.x.col_stride) - load(p.y, y + j * p.y.col_stride);
    sum += difference * difference;
  }
  const double cost = p.squared ? sum : sqrt(sum);
  double value = cost + load(p.weights, head * p.weights.head_stride[0] + code * p.weights.row_stride);
  const double noise = load(p.factor, head * p.factor.row_stride);
  if (noise != 0) {
    const uint32_t word =
        random_words(p.seed, uint64_t(p.first_row) + uint64_t(row), uint64_t(code), uint32_t(head)).word[code % 4];
    value -= noise * gumbel(word);
  }
  return value;
}

}  // namespace vqdm::cuda
