// The loops of the filter, written once and instantiated per instruction set (the interface: nearest_code_filter.h).
//
// Kernel: Vec, a register of kLanes floats with load, store, min, max, smallest, keep_smaller and not_above; Words, a
// register of kLanes words with load_words and broadcast; Sum with start(x, code) = x code, add(x, code, sum) = sum + x
// code, and finish(sum, factor, bias), a Vec of scores.

#pragma once

#include "nearest_code_filter.h"

namespace vqdm::cpu {

// The anonymous namespace keeps the linker from merging, say, an AVX-512 copy into the portable kernel.
namespace {

template <class Kernel, int V>
[[gnu::always_inline]] inline void score_tile(RowTile rows, CodePanels codes, int64_t p,
                                              typename Kernel::Vec (&scores)[kTileRows][V]) {
  constexpr int L = Kernel::kLanes, W = V * L;
  const int32_t* panel = codes.words + p * codes.steps * W;
  typename Kernel::Sum sums[kTileRows][V];
  // The first product starts each sum and the bias ends it: copies of the bias to start from would cost more.
  {
    typename Kernel::Words code[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) code[v] = Kernel::load_words(panel + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const typename Kernel::Words x = Kernel::broadcast(rows.words + r);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r][v] = Kernel::start(x, code[v]);
    }
  }
  for (int64_t j = 1; j < codes.steps; ++j) {
    typename Kernel::Words code[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) code[v] = Kernel::load_words(panel + j * W + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const typename Kernel::Words x = Kernel::broadcast(rows.words + j * kTileRows + r);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r][v] = Kernel::add(x, code[v], sums[r][v]);
    }
  }
  typename Kernel::Vec bias[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) bias[v] = Kernel::load(codes.bias + p * W + v * L);
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) scores[r][v] = Kernel::finish(sums[r][v], rows.factors + r, bias[v]);
  }
}

template <class Kernel, int V>
[[gnu::always_inline]] inline typename Kernel::Vec smallest_of(const typename Kernel::Vec (&scores)[V]) {
  typename Kernel::Vec smallest = scores[0];
#pragma GCC unroll 8
  for (int v = 1; v < V; ++v) smallest = Kernel::min(smallest, scores[v]);
  return smallest;
}

template <class Kernel, int V>
void scan_panels(RowTile rows, CodePanels codes, int64_t begin, int64_t end, LaneMinima* minima) {
  for (int64_t p = begin; p < end; ++p) {
    typename Kernel::Vec scores[kTileRows][V];
    score_tile<Kernel, V>(rows, codes, p, scores);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const typename Kernel::Vec smallest = smallest_of<Kernel, V>(scores[r]);
      LaneMinima& row = minima[r];
      const typename Kernel::Vec best = Kernel::load(row.best);
      Kernel::store(row.second, Kernel::min(Kernel::load(row.second), Kernel::max(best, smallest)));
      Kernel::keep_smaller(smallest, best, int32_t(p), row.panel);
      Kernel::store(row.best, Kernel::min(smallest, best));
    }
  }
}

template <class Kernel, int V>
void find_in_panels(RowTile rows, CodePanels codes, int64_t begin, int64_t end, const float* thresholds,
                    uint16_t* hits) {
  for (int64_t p = begin; p < end; ++p, hits += kTileRows) {
    typename Kernel::Vec scores[kTileRows][V];
    score_tile<Kernel, V>(rows, codes, p, scores);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) hits[r] = Kernel::not_above(smallest_of<Kernel, V>(scores[r]), thresholds[r]);
  }
}

template <class Kernel>
Selection select_lanes(const LaneMinima& minima, float margin) {
  const typename Kernel::Vec best = Kernel::load(minima.best);
  const float limit = Kernel::smallest(best) + margin;
  return {limit, Kernel::not_above(best, limit), Kernel::not_above(Kernel::load(minima.second), limit)};
}

}  // namespace
}  // namespace vqdm::cpu
