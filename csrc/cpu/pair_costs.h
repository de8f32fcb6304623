// What Sinkhorn's iterations ask of the costs of all pairs, which are computed tile by tile and never stored:
//
//   pair_logsumexp  out_i = log sum_j exp(weights_j - scale c_ij)
//   pair_sweep      v'_i = v_i - log(exp(v_i + log sum_j exp(S_ij + u_j)) + floor) - log N
//                   columns_j = log sum_i exp(S_ij + v'_i)              with S_ij = shift - scale c_ij
//   pair_sums       out = sum_ij (||x_i - y_j|| - shift), and sum_ij of its square
//   pair_argmin     out_i = lowest j that minimises (c_ij + bias_j) - noise G_ij; 0 where every such number is NaN
//
// with c_ij = ||x_i - y_j||, or its square, and a Gumbel number G_ij = gumbel(seed, first_row + i, j, head)
// (counter_random.h). Costs are computed in T, on rows less the mean of y; sums over j in T within a block of panels
// and in float64 between blocks. pair_argmin decides in float64: differences, squares, a left-to-right sum, no fused
// multiply-add, for every j that a proven bound on the error in T leaves open.
//
// Shapes: x [N, d], y [M, d] of any floating type and strides. Torch-free.

#pragma once

#include <cstdint>

#include "matrix.h"
#include "parallel_for.h"

namespace vqdm::cpu {

struct PairProblem {
  Matrix x, y;
  int64_t N, M;
  int d;
};

// out [N]; -infinity where M = 0. T: float or double.
template <class T>
void pair_logsumexp(const PairProblem& problem, const double* weights, double scale, bool squared, double* out,
                    const ParallelFor& parallel_for);

struct PairSweep {
  const double* u;  // [M]
  const double* v;  // [N]
  double scale, shift;
  double log_floor;  // -infinity: no floor
  double log_rows;   // log N, of all processes
  bool squared;
};

// v [N], columns [M]. The columns of exp(S_ij + u_j + v_i) must sum to at most 1 / M, as a column step leaves them.
template <class T>
void pair_sweep(const PairProblem& problem, const PairSweep& sweep, double* v, double* columns,
                const ParallelFor& parallel_for);

// v [N] of pair_sweep, and as indices [N] the lowest j that minimises c_ij - u_j / scale, decided in float64.
template <class T>
void pair_last_sweep(const PairProblem& problem, const PairSweep& sweep, double* v, int64_t* indices,
                     const ParallelFor& parallel_for);

// out [2].
template <class T>
void pair_sums(const PairProblem& problem, double shift, double* out, const ParallelFor& parallel_for);

struct PairNoise {
  double scale = 0;  // 0: none
  uint64_t seed = 0;
  int64_t first_row = 0;
  uint32_t head = 0;
};

// out [N].
template <class T>
void pair_argmin(const PairProblem& problem, const double* bias, bool squared, const PairNoise& noise, int64_t* out,
                 const ParallelFor& parallel_for);

}  // namespace vqdm::cpu
