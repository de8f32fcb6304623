// One-sided Jacobi (Hestenes, 1958) on the device: rotations of pairs of columns, and the order of the pairs.
//
// A column is 2 n numbers, [b; v]: v is a column of the accumulated rotations V, b of B V. A rotation of two columns
// makes their b orthogonal. Columns lie in shared memory, one after the other.
//
// Order: in round s of m the pairs are those with p + q = s (mod m), disjoint, and equivalent to the cyclic order by
// rows (Luk and Park, 1989); the longer column goes to the lower place (de Rijk, 1989). Together they matter: of
// eigenvalues graded over twelve decades at n = 64, 11 sweeps find what the circle method without the exchange, or
// with it, finds in 19 and in 29.

#pragma once

#include <math.h>

#include "reduce.cuh"
#include "simt.cuh"

namespace vqdm::cuda {

inline constexpr double kEpsilon = 0x1p-52;

struct Pair {
  int p, q;  // p < q
};

// Pairs in round s of m.
__device__ inline int num_pairs(int m, int s) {
  return (m - (s % 2 == 0 ? 1 : 0)) / 2;
}
__device__ inline Pair pair_of(int m, int s, int k) {
  const int down = s / 2 - k - (s % 2 == 0 ? 1 : 0), up = (s + 1) / 2 + k + (s % 2 == 0 ? 1 : 0);
  const int p = down < 0 ? down + m : down, q = up >= m ? up - m : up;
  return p < q ? Pair{p, q} : Pair{q, p};
}

// What counts as zero, of a matrix whose squared Frobenius norm is `squares`: below sqrt(n) u |B|_F <= n u max |b_j| a
// column is rounding.
struct Tolerance {
  double cosine;  // squared: |b_p . b_q|^2 <= cosine |b_p|^2 |b_q|^2 is orthogonal
  double column;  // squared norm
};
__device__ inline Tolerance tolerance_of(int n, double squares) {
  return {16 * kEpsilon * kEpsilon * n, n * kEpsilon * kEpsilon * squares};
}

// Rotates columns p < q, and puts the longer into p; kLanes neighbouring lanes work on one pair, n <= kLanes kEach. All
// lanes of a warp come here together, those without a pair with active = false. Says whether a column
// changed: one that moved may have passed another that it has yet to meet, so an exchange asks for a further sweep too.
template <int kLanes, int kEach>
__device__ bool rotate(simt::Shared<double> columns, int n, Pair pair, bool active, Tolerance tolerance) {
  const int lane = simt::lane_index() % kLanes;
  const int64_t at_p = int64_t(pair.p) * 2 * n, at_q = int64_t(pair.q) * 2 * n;
  double bp[kEach], bq[kEach];
  double alpha = 0, beta = 0, gamma = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int i = lane + e * kLanes;
    const bool there = active && i < n;
    bp[e] = there ? double(columns[at_p + i]) : 0.0;
    bq[e] = there ? double(columns[at_q + i]) : 0.0;
    alpha = fma(bp[e], bp[e], alpha);
    beta = fma(bq[e], bq[e], beta);
    gamma = fma(bp[e], bq[e], gamma);
  }
  alpha = group_sum<kLanes>(alpha);
  beta = group_sum<kLanes>(beta);
  gamma = group_sum<kLanes>(gamma);

  const bool rotates =
      gamma * gamma > tolerance.cosine * alpha * beta && (alpha < beta ? alpha : beta) > tolerance.column;
  const bool exchanges = alpha < beta;
  if (!rotates && !exchanges) return false;
  // The smaller of the two angles. In terms of tau = tan(angle / 2), small rotations round little: in terms of the
  // cosine, V strays from orthogonality 25 times as far.
  double s = 0, tau = 0;
  if (rotates) {
    const double apart = beta - alpha;
    const double t = (apart < 0 ? -2 : 2) * gamma / (fabs(apart) + sqrt(fma(apart, apart, 4 * gamma * gamma)));
    const double c = 1 / sqrt(fma(t, t, 1.0));
    s = c * t;
    tau = s / (1 + c);
  }
  const int64_t to_p = exchanges ? at_q : at_p, to_q = exchanges ? at_p : at_q;
  const auto turn = [&](int i, double x, double y) {
    columns[to_p + i] = fma(-s, fma(tau, x, y), x);
    columns[to_q + i] = fma(s, fma(-tau, y, x), y);
  };
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int i = lane + e * kLanes;
    if (i < n) {
      turn(i, bp[e], bq[e]);
      turn(n + i, columns[at_p + n + i], columns[at_q + n + i]);
    }
  }
  return rotates || exchanges;
}

// All pairs of one round, shared out over the block. `pair_at(k)` gives pair k, with p < 0 for one to leave out.
template <int kLanes, int kEach, typename PairAt>
__device__ bool rotate_round(simt::Shared<double> columns, int n, int pairs, Tolerance tolerance, PairAt&& pair_at) {
  constexpr int kGroups = 32 / kLanes;  // of a warp
  bool rotated = false;
  for (int first = simt::warp_index() * kGroups; first < pairs; first += simt::block_size() / 32 * kGroups) {
    const int k = first + simt::lane_index() / kLanes;
    const Pair pair = k < pairs ? pair_at(k) : Pair{-1, -1};
    rotated = rotate<kLanes, kEach>(columns, n, pair, pair.p >= 0, tolerance) || rotated;
  }
  return rotated;
}

}  // namespace vqdm::cuda
