// The filter of nearest_code: low-precision scores of all codes, reduced on the fly to a few minima per row.
//
//   score[r][k] = factor[r] * sum_j x[j][r] * codes[j][k] + bias[k]     approximates ||e'_k||^2 + bias_k - 2 z'_r .
//   e'_k
//
// x and codes stand in 32-bit words: one float, or a pair of int16 (dims j and j + 1; nearest_code_format.h). Codes
// stand in panels of W = V * L consecutive codes, panel-major [panel][steps][W]; code k sits in panel k / W, and within
// the panel in vector v = k % V, lane l = (k % W) / V, so one lane of all V vectors is a group of V consecutive codes.
// Per row and lane the filter keeps the smallest group minimum, its panel, and the second smallest: enough to certify
// the winner, at one compare-and-keep per W codes instead of per code. N x K is never stored.

#pragma once

#include <cstdint>

#include "row_math.h"

namespace vqdm::cpu {

// 6 rows x 4 vectors = 24 accumulators, the most that 32 registers hold beside operands.
inline constexpr int kTileRows = 6;
inline constexpr int kMaxLanes = 16;

struct LaneMinima {  // of one row
  alignas(64) float best[kMaxLanes];
  alignas(64) float second[kMaxLanes];
  alignas(64) int32_t panel[kMaxLanes];
};

struct Selection {  // lanes, a bit each
  float limit;      // the smallest score + margin
  uint16_t best;    // whose smallest score is not above the limit
  uint16_t second;  // whose second smallest is not either: the minima do not name all groups that may win
};

enum class WordFormat { kFloat32, kInt16Pair };

struct RowTile {
  const int32_t* words;  // [steps][kTileRows]
  const float* factors;  // [kTileRows]; float words are scaled already and ignore them
};

struct CodePanels {
  const int32_t* words;  // [panels][steps][W], 64-byte aligned
  const float* bias;     // [panels][W]
  int64_t steps;         // words per code
};

struct NearestCodeFilter {
  const char* name;
  WordFormat format;
  int lanes;    // L
  int vectors;  // V
  int panel_width() const { return lanes * vectors; }

  // Updates minima[kTileRows] with panels [begin, end).
  void (*scan)(RowTile rows, CodePanels codes, int64_t begin, int64_t end, LaneMinima* minima);
  // hits[p - begin][r]: the lanes of panel p with a score of row r that is not above thresholds[r].
  void (*find)(RowTile rows, CodePanels codes, int64_t begin, int64_t end, const float* thresholds, uint16_t* hits);

  Selection (*select)(const LaneMinima& minima, float margin);

  const RowMath& rows;

  // What takes the rows that this filter is too coarse for; null where it is the finest.
  const NearestCodeFilter* finer;
};

extern const NearestCodeFilter kNearestCodePortable;
extern const NearestCodeFilter kNearestCodeAvx2;
extern const NearestCodeFilter kNearestCodeAvx512;
extern const NearestCodeFilter kNearestCodeAvx512Vnni;

// The fastest filter this processor runs; VQDM_CPU_KERNEL=portable|avx2|avx512|avx512vnni asks for one by name, and
// gets the next slower one where the processor lacks it (for tests).
const NearestCodeFilter& nearest_code_filter();

}  // namespace vqdm::cpu
