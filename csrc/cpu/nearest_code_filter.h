// The fp32 filter of nearest_code: one algorithm, instantiated once per instruction set.
//
//   score[r][k] = sum_j x[j][r] * codes[j][k] + bias[k]        x holds -2 z', codes hold e', bias ||e'||^2 + user bias
//
// Codes stand in panels of W = V * L consecutive codes, panel-major [panel][d][W]; code k sits in panel k / W, and
// within the panel in vector v = k % V, lane l = (k % W) / V, so one lane of all V vectors is a group of V consecutive
// codes. Per row and lane the filter keeps the smallest group minimum, its panel, and the second smallest: enough to
// certify the winner, at one compare-and-keep per W codes instead of per code. N x K is never stored.

#pragma once

#include <cstdint>

namespace vqdm::cpu {

inline constexpr int kTileRows =
    6;  // 6 rows x 4 vectors = 24 accumulators, the most that 32 registers hold beside operands
inline constexpr int kMaxLanes = 16;
inline constexpr int kMaxPanelWidth = 64;

struct LaneMinima {  // of one row
  alignas(64) float best[kMaxLanes];
  alignas(64) float second[kMaxLanes];
  alignas(64) int32_t panel[kMaxLanes];
};

struct NearestCodeFilter {
  const char* name;
  int lanes;    // L
  int vectors;  // V
  int panel_width() const { return lanes * vectors; }

  // Updates minima[kTileRows] with panels [panel_begin, panel_end). x: [d][kTileRows].
  void (*scan)(const float* x, int d, const float* codes, const float* bias, int64_t panel_begin, int64_t panel_end,
               LaneMinima* minima);
  // Writes the W scores of one row and one panel. x: [d] with stride kTileRows.
  void (*score_panel)(const float* x, int d, const float* codes, const float* bias, int64_t panel, float* scores);
};

extern const NearestCodeFilter kNearestCodePortable;
extern const NearestCodeFilter kNearestCodeAvx2;
extern const NearestCodeFilter kNearestCodeAvx512;

// Everything below is instantiated in translation units with different instruction sets. The anonymous namespace keeps
// the linker from merging, say, an AVX-512 copy into the portable kernel.
namespace {

// Vec: a register type with kLanes, load, store, broadcast, mul, add, fma (a * b + c), min, max and keep_smaller.
template <class Vec, int V>
void scan_panels(const float* x, int d, const float* codes, const float* bias, int64_t panel_begin, int64_t panel_end,
                 LaneMinima* minima) {
  constexpr int L = Vec::kLanes, W = V * L;
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    const float* panel = codes + p * d * W;
    Vec acc[kTileRows][V];
    // The first product starts each sum and the bias ends it: copies of the bias to start from would cost more.
    {
      Vec code[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) code[v] = Vec::load(panel + v * L);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
        const Vec value = Vec::broadcast(x[r]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] = Vec::mul(value, code[v]);
      }
    }
    for (int j = 1; j < d; ++j) {
      Vec code[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) code[v] = Vec::load(panel + j * W + v * L);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
        const Vec value = Vec::broadcast(x[j * kTileRows + r]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] = Vec::fma(value, code[v], acc[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const Vec end = Vec::load(bias + p * W + v * L);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) acc[r][v] = Vec::add(acc[r][v], end);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      Vec smallest = acc[r][0];
#pragma GCC unroll 8
      for (int v = 1; v < V; ++v) smallest = Vec::min(smallest, acc[r][v]);
      LaneMinima& row = minima[r];
      const Vec best = Vec::load(row.best);
      Vec::min(Vec::load(row.second), Vec::max(best, smallest)).store(row.second);
      Vec::keep_smaller(smallest, best, int32_t(p), row.panel);
      Vec::min(smallest, best).store(row.best);
    }
  }
}

template <class Vec, int V>
void score_one_panel(const float* x, int d, const float* codes, const float* bias, int64_t p, float* scores) {
  constexpr int L = Vec::kLanes, W = V * L;
  const float* panel = codes + p * d * W;
  Vec acc[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) acc[v] = Vec::mul(Vec::broadcast(x[0]), Vec::load(panel + v * L));
  for (int j = 1; j < d; ++j) {
    const Vec value = Vec::broadcast(x[j * kTileRows]);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) acc[v] = Vec::fma(value, Vec::load(panel + j * W + v * L), acc[v]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) Vec::add(acc[v], Vec::load(bias + p * W + v * L)).store(scores + v * L);
}

}  // namespace
}  // namespace vqdm::cpu
