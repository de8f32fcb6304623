// Costs of all pairs of rows x_i and y_j, tile by tile, reduced on the fly: the inner loops of pair_costs.h.
//
//   D_ij = ||x_i||^2 + ||y_j||^2 - 2 x_i . y_j      of rows that were centred; where D_ij < near_i, where digits cancel
//                                                   that a square root would miss, as the sum of (x_ik - y_jk)^2
//   score_ij = weights_j - scale c_ij               c = D, or its root
//
// y stands in panels of W consecutive rows, [panels][d][W]; x in tiles of kPairRows rows, [d][kPairRows], times -2.
// Results depend on the instruction set (W, rounding), not on how rows or panels are shared out.

#pragma once

#include <cstdint>

namespace vqdm::cpu {

inline constexpr int kPairRows = 6;
inline constexpr int kPairBlockTiles = 4;  // of rows whose exponentials are kept at a time
inline constexpr int kPairBytes = 64;      // of the widest vector

// A squared distance below it counts as it. Not 0: its root, and the inverse of that, must be normal numbers.
template <class T>
inline constexpr T kTinyDistance = sizeof(T) == 4 ? T(0x1p-120) : T(0x1p-1000);

template <class T>
struct PairRows {
  const T* x;      // [tiles][d][kPairRows], -2 x
  const T* norms;  // [tiles][kPairRows]
  const T* near;   // [tiles][kPairRows], at least kTinyDistance
};

template <class T>
struct PairPanels {
  const T* y;        // [panels][d][W], 64-byte aligned
  const T* norms;    // [panels][W]
  const T* weights;  // [panels][W]; very negative where a panel is longer than y
  int64_t d;
};

struct PairRange {
  int64_t tiles;       // all tiles of the rows
  int64_t begin, end;  // panels
};

// sum_j 2^score_j of one row, as 2^reference (total + sum of lanes): no score so far exceeds the reference by much.
template <class T>
struct PairLogSum {
  T reference;
  double total;
  alignas(kPairBytes) T lanes[kPairBytes / sizeof(T)];
};

template <class T>
struct PairScan {
  int panel_width;  // W

  // The sums of every row over the panels; lanes are added to the totals at the end.
  void (*logsumexp)(PairRows<T> rows, PairPanels<T> panels, T scale, bool squared, PairRange range,
                    PairLogSum<T>* sums);
  // out [panels][tiles][kPairRows][W] = 2^(score + the row's offset), for at most kPairBlockTiles tiles; adds to sums
  // those of every row over the panels.
  void (*exponentials)(PairRows<T> rows, PairPanels<T> panels, T scale, bool squared, const T* offsets, PairRange range,
                       T* out, double* sums);
  // Adds the sums over the rows of factor times power to columns [panels][W].
  void (*add_columns)(const T* powers, const T* factors, PairRange range, double* columns);
  // The largest power of a row, counted from the first tile's; and the first panel of the range where it has a power
  // that is not below the limit, or the range's end.
  T (*largest_power)(const T* powers, PairRange range, int64_t row);
  int64_t (*find_power)(const T* powers, PairRange range, int64_t row, T limit);
  // Adds the sums over the panels of weights_j (c - shift), and of its square, to out[row].
  void (*moments)(PairRows<T> rows, PairPanels<T> panels, T shift, PairRange range, double (*out)[2]);
  // The rows of tile t, a bit each, with a score in panel p that is not below their limit, and all their scores
  // [kPairRows][W] there.
  unsigned (*above)(PairRows<T> rows, PairPanels<T> panels, T scale, bool squared, int64_t t, int64_t p,
                    const T* limits, T* scores);
};

extern const PairScan<float> kPairScanPortable32;
extern const PairScan<double> kPairScanPortable64;
extern const PairScan<float> kPairScanAvx2_32;
extern const PairScan<double> kPairScanAvx2_64;
extern const PairScan<float> kPairScanAvx512_32;
extern const PairScan<double> kPairScanAvx512_64;

// The fastest that this processor runs (cpu_features.h).
template <class T>
const PairScan<T>& pair_scan();

}  // namespace vqdm::cpu
