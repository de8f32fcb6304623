// The loops of pair_scan.h, written once on GCC's vectors and compiled per instruction set.

#pragma once

#include <cmath>
#include <type_traits>

#include "pair_scan.h"
#include "pair_vectors.h"

namespace vqdm::cpu {
namespace {

template <class T, int kBytes, int kVectors>
struct Loops : PairVectors<T, kBytes> {
  using Of = PairVectors<T, kBytes>;
  using Vec = typename Of::Vec;
  using Of::any_below, Of::below, Of::exp2, Of::largest, Of::load, Of::max, Of::min, Of::sqrt, Of::store, Of::sum;
  static constexpr int L = Of::L, V = kVectors, W = V * L, R = kPairRows;

  static const T* tile_of(const PairRows<T>& rows, const PairPanels<T>& panels, int64_t t) {
    return rows.x + t * panels.d * R;
  }

  struct Weights {
    Vec of[V];
    Vec operator[](int v) const { return of[v]; }
  };
  static Weights weights_of(const PairPanels<T>& panels, int64_t p) {
    Weights weights;
    for (int v = 0; v < V; ++v) weights.of[v] = load(panels.weights + p * W + v * L);
    return weights;
  }

  // Squared distances of tile t and panel p. A function of its own: inlined, its sums lose registers to the constants
  // of what comes after.
  [[gnu::noinline]] static void distances(const PairRows<T>& rows, const PairPanels<T>& panels, int64_t t, int64_t p,
                                          Vec (&out)[R][V]) {
    const T *y = panels.y + p * panels.d * W, *x = tile_of(rows, panels, t);
    // From 0: from the norms, every step would round at their size.
    Vec sums[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r][v] = Vec{};
    }
    for (int64_t j = 0; j < panels.d; ++j, y += W, x += R) {
      Vec right[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) right[v] = load(y + v * L);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sums[r][v] += x[r] * right[v];
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const Vec norms = load(panels.norms + p * W + v * L);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) out[r][v] = sums[r][v] + (norms + rows.norms[t * R + r]);
    }
  }

  // sum_k (x_k - y_k)^2 for one row and one vector of a panel.
  [[gnu::noinline]] static Vec directly(const T* x, const PairPanels<T>& panels, int64_t p, int v) {
    const T* y = panels.y + p * panels.d * W + v * L;
    Vec sum = Vec{};
    for (int64_t j = 0; j < panels.d; ++j, y += W, x += R) {
      const Vec difference = x[0] + 2 * load(y);  // -2 (x - y)
      sum += difference * difference;
    }
    return max(sum * T(0.25), Vec{} + kTinyDistance<T>);
  }

  // In place: the squared distances of row r of tile t to panel p, anew where digits have cancelled.
  [[gnu::always_inline]] static void mend(const PairRows<T>& rows, const PairPanels<T>& panels, int64_t t, int64_t p,
                                          int r, Vec (&D)[V]) {
    Vec low = D[0];
#pragma GCC unroll 8
    for (int v = 1; v < V; ++v) low = min(low, D[v]);
    const Vec near = Vec{} + rows.near[t * R + r];
    if (__builtin_expect(!any_below(low, near), 1)) return;
    for (int v = 0; v < V; ++v) {
      if (any_below(D[v], near)) D[v] = directly(tile_of(rows, panels, t) + r, panels, p, v);
    }
  }

  // weight - scale c, of squared distances.
  template <bool kSquared>
  [[gnu::always_inline]] static Vec score(Vec D, T scale, Vec weight) {
    if constexpr (kSquared) return weight - scale * D;
#if defined(__AVX512F__)
    // The approximate inverse y of the root with one Newton step, c = D y + y / 2 (D - (D y)^2), has an error below one
    // unit in the last place of float, at a fifth of the time of the instruction.
    if constexpr (kBytes == 64 && std::is_same_v<T, float>) {
      const Vec y = (Vec)_mm512_rsqrt14_ps((__m512)D), root = D * y;
      return (weight - scale * root) - (y * (T(0.5) * scale)) * (D - root * root);
    }
#endif
    return weight - scale * sqrt(D);
  }

  template <bool kSquared>
  static void logsumexp_of(const PairRows<T>& rows, const PairPanels<T>& panels, T scale, PairRange range,
                           PairLogSum<T>* sums) {
    constexpr T kSlack = 16;
    for (int64_t p = range.begin; p < range.end; ++p) {
      const auto weights = weights_of(panels, p);
      for (int64_t t = 0; t < range.tiles; ++t) {
        Vec D[R][V];
        distances(rows, panels, t, p, D);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          PairLogSum<T>& row = sums[t * R + r];
          mend(rows, panels, t, p, r, D[r]);
          Vec above[V];  // the scores, less the reference
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) above[v] = score<kSquared>(D[r][v], scale, weights[v] - row.reference);
          Vec high = above[0];
#pragma GCC unroll 8
          for (int v = 1; v < V; ++v) high = max(high, above[v]);
          if (__builtin_expect(any_below(Vec{} + kSlack, high), 0)) {
            raise<kSquared>(row, D[r], scale, weights, above);
          }
          Vec sum = load(row.lanes);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sum += exp2(above[v]);
          store(row.lanes, sum);
        }
      }
    }
    for (int64_t i = 0; i < range.tiles * R; ++i) {
      sums[i].total += sum(load(sums[i].lanes));
      store(sums[i].lanes, Vec{});
    }
  }

  // Makes the largest score of a vector of panels the reference; the first one is -infinity.
  template <bool kSquared>
  [[gnu::noinline]] static void raise(PairLogSum<T>& row, const Vec (&D)[V], T scale, const Weights& weights,
                                      Vec (&above)[V]) {
    Vec high = score<kSquared>(D[0], scale, weights[0]);
    for (int v = 1; v < V; ++v) high = max(high, score<kSquared>(D[v], scale, weights[v]));
    const T reference = largest(high);
    const double factor = std::exp2(double(row.reference) - double(reference));
    row.reference = reference;
    row.total *= factor;
    store(row.lanes, load(row.lanes) * T(factor));
    for (int v = 0; v < V; ++v) above[v] = score<kSquared>(D[v], scale, weights[v] - reference);
  }

  static void logsumexp(PairRows<T> rows, PairPanels<T> panels, T scale, bool squared, PairRange range,
                        PairLogSum<T>* sums) {
    squared ? logsumexp_of<true>(rows, panels, scale, range, sums)
            : logsumexp_of<false>(rows, panels, scale, range, sums);
  }

  template <bool kSquared>
  static void exponentials_of(const PairRows<T>& rows, const PairPanels<T>& panels, T scale, const T* offsets,
                              PairRange range, T* out, double* sums) {
    constexpr int kMostTiles = kPairBlockTiles;
    alignas(kPairBytes) T lanes[kMostTiles * R][L] = {};
    for (int64_t p = range.begin; p < range.end; ++p) {
      const auto weights = weights_of(panels, p);
      for (int64_t t = 0; t < range.tiles; ++t) {
        Vec D[R][V];
        distances(rows, panels, t, p, D);
        T* to = out + (p * range.tiles + t) * R * W;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          mend(rows, panels, t, p, r, D[r]);
          Vec sum = load(lanes[t * R + r]);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            const Vec power = exp2(score<kSquared>(D[r][v], scale, weights[v] + offsets[t * R + r]));
            store(to + r * W + v * L, power);
            sum += power;
          }
          store(lanes[t * R + r], sum);
        }
      }
    }
    for (int64_t i = 0; i < range.tiles * R; ++i) sums[i] += sum(load(lanes[i]));
  }

  static void exponentials(PairRows<T> rows, PairPanels<T> panels, T scale, bool squared, const T* offsets,
                           PairRange range, T* out, double* sums) {
    squared ? exponentials_of<true>(rows, panels, scale, offsets, range, out, sums)
            : exponentials_of<false>(rows, panels, scale, offsets, range, out, sums);
  }

  static void add_columns(const T* powers, const T* factors, PairRange range, double* columns) {
    for (int64_t p = range.begin; p < range.end; ++p) {
      const T* from = powers + p * range.tiles * R * W;
      Vec sums[V] = {};
      for (int64_t i = 0; i < range.tiles * R; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sums[v] += factors[i] * load(from + i * W + v * L);
      }
      T row[W];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) store(row + v * L, sums[v]);
      for (int j = 0; j < W; ++j) columns[p * W + j] += double(row[j]);
    }
  }

  static T largest_power(const T* powers, PairRange range, int64_t row) {
    Vec high[V] = {};
    for (int64_t p = range.begin; p < range.end; ++p) {
      const T* from = powers + (p * range.tiles * R + row) * W;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) high[v] = max(high[v], load(from + v * L));
    }
    for (int v = 1; v < V; ++v) high[0] = max(high[0], high[v]);
    return largest(high[0]);
  }

  static int64_t find_power(const T* powers, PairRange range, int64_t row, T limit) {
    for (int64_t p = range.begin; p < range.end; ++p) {
      const T* from = powers + (p * range.tiles * R + row) * W;
      Vec high = load(from);
#pragma GCC unroll 8
      for (int v = 1; v < V; ++v) high = max(high, load(from + v * L));
      if (below(high, Vec{} + limit) != (1u << L) - 1) return p;  // NaN is not below
    }
    return range.end;
  }

  static void moments(PairRows<T> rows, PairPanels<T> panels, T shift, PairRange range, double (*out)[2]) {
    for (int64_t t = 0; t < range.tiles; ++t) {
      Vec first[R] = {}, second[R] = {};
      for (int64_t p = range.begin; p < range.end; ++p) {
        Vec D[R][V];
        distances(rows, panels, t, p, D);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          mend(rows, panels, t, p, r, D[r]);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            const Vec c = score<false>(D[r][v], T(-1), Vec{} - shift) * load(panels.weights + p * W + v * L);
            first[r] += c;
            second[r] += c * c;
          }
        }
      }
      for (int r = 0; r < R; ++r) {
        out[t * R + r][0] += sum(first[r]);
        out[t * R + r][1] += sum(second[r]);
      }
    }
  }

  template <bool kSquared>
  static unsigned above_of(const PairRows<T>& rows, const PairPanels<T>& panels, T scale, int64_t t, int64_t p,
                           const T* limits, T* out) {
    Vec D[R][V];
    distances(rows, panels, t, p, D);
    const auto weights = weights_of(panels, p);
    const T inverse = T(1) / scale;
    unsigned rows_hit = 0;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      mend(rows, panels, t, p, r, D[r]);
      // score >= limit where c <= reach = (weight - limit) / scale, that is, D <= reach^2: no root.
      unsigned below_all = ~0u;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const Vec reach = max((weights[v] - limits[r]) * inverse, Vec{});
        below_all &= below(kSquared ? reach : reach * reach, D[r][v]);
      }
      if (__builtin_expect(below_all == (1u << L) - 1, 1)) continue;  // NaN is not below
      rows_hit |= 1u << r;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) store(out + r * W + v * L, score<kSquared>(D[r][v], scale, weights[v]));
    }
    return rows_hit;
  }

  static unsigned above(PairRows<T> rows, PairPanels<T> panels, T scale, bool squared, int64_t t, int64_t p,
                        const T* limits, T* scores) {
    return squared ? above_of<true>(rows, panels, scale, t, p, limits, scores)
                   : above_of<false>(rows, panels, scale, t, p, limits, scores);
  }
};

template <class T, int kBytes, int kVectors>
constexpr PairScan<T> make_pair_scan() {
  using Of = Loops<T, kBytes, kVectors>;
  return {Of::W,          Of::logsumexp, Of::exponentials, Of::add_columns, Of::largest_power,
          Of::find_power, Of::moments,   Of::above};
}

}  // namespace
}  // namespace vqdm::cpu
