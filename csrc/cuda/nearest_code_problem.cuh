// What all kernels of nearest_code share: the problem on the device, how its numbers are read, and the error bound.
//
// Heads that use one codebook make one group, and their rows are numbered through; else each head is a group of its
// own. Everything below is said of one group: rows 0 .. rows - 1, codes 0 .. K - 1.

#pragma once

#include <math.h>

#include "lanes.cuh"
#include "nearest_code.h"
#include "operand.cuh"
#include "simt.cuh"

namespace vqdm::cuda {

inline constexpr int kGroupCodes = 16;                       // codes whose smallest score a filter keeps
inline constexpr int kTileCodes = 128;                       // codes that a filter's block takes at once
inline constexpr int kStepUnits = kTileCodes * 16 * 2 / 16;  // 16-byte units of a tile and 16 dimensions, packed
inline constexpr int kMaxSplits = 16;                        // parts of the codebook that blocks scan apart
inline constexpr float kFar = 64.0f;  // codes with scaled norm above this are outliers: computed exactly for all rows
inline constexpr float kTooLarge = 0x1p60f;  // what the bound's float32 arithmetic can take

// Facts about the codes of a group, in units of the scaled, centred data. Maxima are over the codes of the filter.
struct CodeFacts {
  double scale;       // a power of two
  float norm;         // largest ||e'||
  float residual;     // largest ||e' - half(e')||
  float bias;         // largest |user bias|
  float packed_bias;  // largest |packed bias|
  int any_valid;      // is there a code to choose, outliers included?
  int num_outliers;   // may exceed the room for them: then no filter can be trusted
  int num_open[2];    // rows left open by the first and the second decision
};

// What a filter keeps of one row and one split: the two groups with the smallest minima among those that were followed,
// and the smallest score that any other group may have.
struct Record {
  float first, second, rest;
  int first_group, second_group;
};

struct Problem : NearestCodeParams {
  int64_t num_groups, rows;  // rows of one group
  int64_t num_tiles;         // of kTileCodes codes
  int depth_steps;           // of 16 dimensions, for tensor cores
  int max_outliers;
  bool in_double;     // z or e is float64: centring takes float64, and scales may leave float32's range
  bool both_float32;  // z and e: the ordinary case, for which loops are written out
  int64_t records_per_group;
  int64_t num_workers;  // blocks of a filter that run at a time
  int num_splits;       // of the first pass
  // In the workspace, group after group:
  CodeFacts* facts;    // [groups]
  float* centre;       // [groups, d]
  float* packed_bias;  // [groups, num_tiles * kTileCodes]; +inf for codes that the filter passes over
  uint4* packed;       // [groups, num_tiles, depth_steps, kStepUnits] half-precision fragments
  int* outliers;       // [groups, max_outliers]
  float* margin;       // [groups, rows]; +inf: to be computed exactly, NaN: no answer
  Record* records;     // [groups, records_per_group]
  int64_t* open[2];    // [groups, rows] rows left open
};

// ---- reading ----

// The row's place in the outputs, counted over all heads.
__device__ inline int64_t output_row(const Problem& p, int64_t group, int64_t row) {
  return group * p.rows + row;
}
// Element offsets of a row of z, of the group's codes, and of its biases.
__device__ inline int64_t z_offset(const Problem& p, int64_t group, int64_t row) {
  const int64_t out = output_row(p, group, row);
  return head_offset(p.heads, p.z, out / p.N) + out % p.N * p.z.row_stride;
}
__device__ inline int64_t e_offset(const Problem& p, int64_t group) {
  return head_offset(p.heads, p.e, group);  // head 0 where all share one codebook
}
__device__ inline double load_bias(const Problem& p, int64_t group, int64_t k) {
  return p.bias.data == nullptr ? 0.0 : load(p.bias, head_offset(p.heads, p.bias, group) + k * p.bias.row_stride);
}

// Element i of z or e, centred and scaled: x' = (x - centre) * scale with an error of 2^-24 |x'|, since one rounding is
// all there is: the centre is a float32 number and the scale a power of two. `finite` stays true for finite x.
__device__ inline float load_centred(const Problem& p, const Operand& a, int64_t i, float centre, double scale,
                                     bool& finite) {
  if (p.in_double) {
    const double x = load(a, i);
    finite = finite && is_finite(x);
    return float((x - double(centre)) * scale);
  }
  const float x = load_float(a, i);
  finite = finite && fabsf(x) < INFINITY;
  return (x - centre) * float(scale);
}

// ---- work: tiles of rows times splits of the codebook ----

// How many splits the scan of `count` rows has; the same for the filter that writes records and the kernel that reads
// them. Any number gives the same answer.
__device__ inline int num_splits(const Problem& p, int pass, int64_t count, int tile_rows) {
  if (pass == 0) return p.num_splits;
  const int64_t wanted = divide_up(p.num_workers, p.num_groups * divide_up(count, tile_rows));
  const int64_t room = p.records_per_group / count;
  int64_t splits = wanted < room ? wanted : room;
  if (splits > kMaxSplits) splits = kMaxSplits;
  if (splits > p.num_tiles) splits = p.num_tiles;
  return splits < 1 ? 1 : int(splits);
}

// Rows that a pass is about: all of the group, or those that the decision of an earlier pass left open.
__device__ inline int64_t pass_rows(const Problem& p, int64_t group, int pass) {
  return pass == 0 ? p.rows : p.facts[group].num_open[pass - 1];
}
__device__ inline int64_t pass_row(const Problem& p, int64_t group, int pass, int64_t i) {
  return pass == 0 ? i : p.open[pass - 1][group * p.rows + i];
}

// Items of work are numbered group after group. The cursor remembers the group of a block's last item, as its next one
// is never in an earlier group.
struct Cursor {
  int64_t group = 0, first_item = 0;
};

// Sets the cursor to the group of item `number`, and `within` to its number in that group; false where there are fewer
// items. items(count) is how many a group with `count` rows has.
template <typename Items>
__device__ inline bool find_item(const Problem& p, int pass, int64_t number, Items&& items, Cursor& cursor,
                                 int64_t& within) {
  if (pass == 0) {  // all groups are alike
    const int64_t each = items(p.rows);
    cursor.group = number / each;
    within = number % each;
    return cursor.group < p.num_groups;
  }
  for (; cursor.group < p.num_groups; ++cursor.group) {
    const int64_t count = pass_rows(p, cursor.group, pass), each = count == 0 ? 0 : items(count);
    within = number - cursor.first_item;
    if (within < each) return true;
    cursor.first_item += each;
  }
  return false;
}

struct FilterItem {
  int64_t group, first, count;  // rows first .. of the pass's count
  int split, num_splits;
  int64_t tile_begin, tile_end;
};

__device__ inline bool find_filter_item(const Problem& p, int pass, int tile_rows, int64_t number, Cursor& cursor,
                                        FilterItem& item) {
  int64_t within = 0;
  const auto items = [&](int64_t count) { return divide_up(count, tile_rows) * num_splits(p, pass, count, tile_rows); };
  if (!find_item(p, pass, number, items, cursor, within)) return false;
  const int64_t count = pass_rows(p, cursor.group, pass);
  const int splits = num_splits(p, pass, count, tile_rows);
  const int64_t s = within % splits;
  item = {cursor.group,
          within / splits * tile_rows,
          count,
          int(s),
          splits,
          s * p.num_tiles / splits,
          (s + 1) * p.num_tiles / splits};
  return true;
}

__device__ inline Record& record_of(const Problem& p, const FilterItem& item, int64_t i) {
  return p.records[item.group * p.records_per_group + i * item.num_splits + item.split];
}

// ---- records ----

// What one thread keeps of a row: the smallest group minimum, its group, and the smallest of all its other groups.
struct RowMinimum {
  float first = INFINITY, second = INFINITY;
  int group = -1;

  __device__ void see(float group_minimum, int which) {
    second = fminf(second, fmaxf(first, group_minimum));
    if (group_minimum < first) {
      first = group_minimum;
      group = which;
    }
  }
  __device__ Record record() const { return {first, INFINITY, second, group, -1}; }
};

// Of two disjoint sets of groups. Commutative and associative, so the order of merging does not show.
__device__ inline Record merged(const Record& a, const Record& b) {
  const bool a_leads = a.first < b.first || (a.first == b.first && a.first_group < b.first_group);
  const Record& x = a_leads ? a : b;
  const Record& y = a_leads ? b : a;
  Record out{x.first, 0.0f, fminf(a.rest, b.rest), x.first_group, -1};
  const bool from_x = x.second < y.first || (x.second == y.first && x.second_group < y.first_group);
  out.second = from_x ? x.second : y.first;
  out.second_group = from_x ? x.second_group : y.first_group;
  out.rest = fminf(out.rest, from_x ? y.first : fminf(x.second, y.second));
  return out;
}

__device__ inline Record merged_with_lane(const Record& own, int lane_mask) {
  return merged(own, {simt::shuffle_xor(own.first, lane_mask), simt::shuffle_xor(own.second, lane_mask),
                      simt::shuffle_xor(own.rest, lane_mask), simt::shuffle_xor(own.first_group, lane_mask),
                      simt::shuffle_xor(own.second_group, lane_mask)});
}

// ---- the bound ----

// What a filter knows of a row, in units of the scaled, centred data.
struct RowFacts {
  float norm;      // ||x'||
  float residual;  // ||x' - what the filter takes for it||
  bool finite;     // of the row as given
};

// A code whose score exceeds the row's smallest by more than this cannot win. With S_k = ||e'_k||^2 + bias_k - 2
// x'.e'_k, which is D_k less a constant of the row,
//   |score_k - S_k| <= 2 (||x' - x^|| E + ||x^|| max ||e' - e^||)      half precision, by Cauchy-Schwarz
//                    + 2 addition ||x^|| ||e^||                        sums of products
//                    + 2^-22 (max |packed bias| + E^2 + 4 ||x'|| E)    float32: centring of z and e, bias, last
//                    addition
//   |D_k - its exact value| <= (d + 8) 2^-52 ((||x'|| + E)^2 + |bias|)
// E = max ||e'||. `addition` bounds the error of the sum over d products relative to ||x^|| ||e^||. 1 % is added for
// the roundings of this bound itself. The last terms cover results below the smallest normal numbers.
__device__ inline float margin_of(const CodeFacts& facts, const RowFacts& row, int max_outliers, int d, float addition,
                                  float code_residual) {
  if (!row.finite || !facts.any_valid) return NAN;
  const float tiny = float(d) * 0x1p-60f;
  const float x = row.norm * 1.001f + tiny, rx = row.residual * 1.001f, e = facts.norm * 1.001f;
  // The added term covers residuals whose squares are too small for float32, and tensor cores that take numbers below
  // half precision's smallest normal one, 2^-14, for as large as that when they align addends.
  const float re = code_residual * 1.001f + float(d) * 0x1p-39f;
  const float reach = x + e;
  const float error = 2.0f * (rx * e + (x + rx) * re) + 2.0f * addition * (x + rx) * (e + re) +
                      0x1p-22f * (facts.packed_bias + e * e + 4.0f * x * e) + tiny * 0x1p-60f * (1.0f + reach);
  const float rounding = float(d + 8) * 0x1p-52f * (reach * reach + facts.bias);
  const float margin = 2.02f * (error + rounding);
  const bool bounded = facts.num_outliers <= max_outliers && d < (1 << 16) && x < kTooLarge && margin < kTooLarge &&
                       double(reach) / facts.scale < 0x1p500;
  return bounded ? margin : INFINITY;
}

}  // namespace vqdm::cuda
