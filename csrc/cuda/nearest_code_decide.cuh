// Steps 4 and 6 of nearest_code: the answer, from the definition.
//
// A decision looks at the few groups whose minimum lies within the margin of the row's smallest score, and at the
// outliers. Where a group that was not followed may hold the winner, the row goes to the list of open rows. The last
// step computes all codes of what is open then.

#pragma once

#include "nearest_code_codes.cuh"

namespace vqdm::cuda {

inline constexpr int kDecideThreads = 128;
inline constexpr int kRowsPerWarp = 8;
inline constexpr int kRowsPerDecideBlock = kDecideThreads / 32 * kRowsPerWarp;
inline constexpr int kExactThreads = 256;
inline constexpr int kExactRows = 8;    // at the most, that a block takes through the codebook together
inline constexpr int kExactChunk = 32;  // dimensions of these rows in shared memory at a time

inline int exact_shared_bytes() {
  return (kExactRows * kExactChunk + 2 * kExactThreads) * int(sizeof(double)) + kExactRows * int(sizeof(int64_t));
}

struct Best {
  double dist2;
  int64_t index;  // -1 while nothing was seen
};

// The lower index wins a tie, so the order of merging does not matter.
__device__ inline Best better(Best a, Best b) {
  if (b.index < 0) return a;
  if (a.index < 0) return b;
  return b.dist2 < a.dist2 || (b.dist2 == a.dist2 && b.index < a.index) ? b : a;
}

// Calls f(z_j, e_j) for j from 0 to d - 1, with float32 numbers where both operands are, float64 ones else.
template <typename F>
__device__ inline void for_each_pair(const Problem& p, int64_t z, int64_t e, F&& f) {
  if (p.both_float32) {
    const float* from_z = static_cast<const float*>(p.z.data) + z;
    const float* from_e = static_cast<const float*>(p.e.data) + e;
#pragma unroll 8
    for (int j = 0; j < p.d; ++j) f(from_z[j * p.z.col_stride], from_e[j * p.e.col_stride]);
  } else {
    for (int j = 0; j < p.d; ++j) f(load(p.z, z + j * p.z.col_stride), load(p.e, e + j * p.e.col_stride));
  }
}

// D by its definition. The compiler must not contract: --fmad=false, -ffp-contract=off.
__device__ inline double exact_dist2(const Problem& p, int64_t z, int64_t e, double bias) {
  double sum = 0;
  for_each_pair(p, z, e, [&](auto z_j, auto e_j) {
    const double difference = double(z_j) - double(e_j);
    sum += difference * difference;
  });
  sum += bias;
  return isnan(sum) ? INFINITY : sum;  // an overflow and a bias of -Inf
}

// An interval that holds D, by float32 arithmetic; where that cannot say, all numbers. For z and e that are not
// float64.
struct Interval {
  float low, high;
};
__device__ inline Interval near_dist2(const Problem& p, int64_t z, int64_t e, double bias) {
  float sum = 0;
  for_each_pair(p, z, e, [&](auto z_j, auto e_j) {
    const float difference = float(z_j) - float(e_j);
    sum = fmaf(difference, difference, sum);
  });
  // One rounding for each difference, square and addition, each 2^-24 of the sum at the most, as all terms are
  // positive; the last term covers results below the smallest normal number.
  const float error = float(p.d + 8) * 0x1p-24f * 1.01f * (sum + fabsf(float(bias))) + float(p.d) * 0x1p-140f;
  const float value = sum + float(bias);
  if (!(sum < 0x1p120f && fabsf(value) < 0x1p120f)) return {-INFINITY, INFINITY};
  return {value - error, value + error};
}

__device__ inline void write_answer(const Problem& p, int64_t out, double dist2, int64_t index) {
  if (p.wide) {
    static_cast<double*>(p.dist2)[out] = dist2;
  } else {
    static_cast<float*>(p.dist2)[out] = float(dist2);
  }
  p.indices[out] = index;
}

// 16 lanes for a row, two rows of a warp at a time.
__device__ inline float half_warp_min(float x) {
  for (int mask = 8; mask > 0; mask /= 2) x = fminf(x, simt::shuffle_xor(x, mask));
  return x;
}
__device__ inline unsigned half_warp_ballot(bool predicate) {
  return simt::ballot(predicate) >> (simt::lane_index() & 16) & 0xffffu;
}

// What stands for a row's code where it has none: a row without an answer, and one that is not decided.
inline constexpr int64_t kNoAnswer = -1, kOpen = -2;

// Calls f(k) on each lane for the codes k that may win, or -1 where a lane has none. All lanes call f together.
template <typename F>
__device__ void for_each_candidate(const Problem& p, int64_t group, const Record& record, unsigned in_first,
                                   unsigned in_second, int outliers, F&& f) {
  const int lane = simt::lane_index(), own = lane % 16, base = lane & 16;
  const float* packed_bias = p.packed_bias + group * p.num_tiles * kTileCodes;
  unsigned left = in_first | in_second << 16;  // bit s: the first group of split s's record; bit 16 + s: the second
  while (simt::any(left != 0)) {
    const int bit = left == 0 ? 0 : simt::lowest_bit(left);
    const int first = simt::shuffle(record.first_group, base + bit % 16);
    const int second = simt::shuffle(record.second_group, base + bit % 16);
    const int64_t k = int64_t(bit < 16 ? first : second) * kGroupCodes + own;
    const bool there = left != 0 && k < p.K && packed_bias[k] < INFINITY;
    f(there ? k : int64_t(-1));
    left &= left - 1;
  }
  for (int i = 0; simt::any(i < outliers); i += 16) {
    f(i + own < outliers ? int64_t(p.outliers[group * p.max_outliers + i + own]) : int64_t(-1));
  }
}

// The row's code, kNoAnswer or kOpen, by its 16 lanes.
__device__ inline int64_t choose(const Problem& p, int64_t group, int64_t row, int64_t at, int splits, bool exists) {
  const int own = simt::lane_index() % 16;
  const float margin = exists ? p.margin[group * p.rows + row] : NAN;
  const bool decidable = margin < INFINITY;
  Record record{INFINITY, INFINITY, INFINITY, -1, -1};
  if (decidable && own < splits) record = p.records[group * p.records_per_group + at * splits + own];
  const float threshold = half_warp_min(record.first) + margin;
  const bool open = half_warp_ballot(record.rest <= threshold && record.rest < INFINITY) != 0;
  const bool look = decidable && !open;
  const unsigned in_first = half_warp_ballot(look && record.first <= threshold && record.first < INFINITY);
  const unsigned in_second = half_warp_ballot(look && record.second <= threshold && record.second < INFINITY);
  const int outliers = look ? p.facts[group].num_outliers : 0;
  const int64_t z = exists ? z_offset(p, group, row) : 0, e = e_offset(p, group);

  // First in float32: mostly one code is clearly the nearest.
  float least_high = INFINITY, least_low = INFINITY, next_low = INFINITY;
  int64_t index = -1;
  for_each_candidate(p, group, record, in_first, in_second, outliers, [&](int64_t k) {
    if (k < 0) return;
    const Interval d2 =
        p.wide ? Interval{-INFINITY, INFINITY} : near_dist2(p, z, e + k * p.e.row_stride, load_bias(p, group, k));
    least_high = fminf(least_high, d2.high);
    next_low = fminf(next_low, fmaxf(least_low, d2.low));
    if (index < 0 || d2.low < least_low) index = k;
    least_low = fminf(least_low, d2.low);
  });
  const float best_high = half_warp_min(least_high);
  const unsigned contenders = half_warp_ballot(index >= 0 && least_low <= best_high);
  const bool clear = half_warp_ballot(index >= 0 && next_low <= best_high) == 0 && (contenders & (contenders - 1)) == 0;
  const int winner = contenders == 0 ? 0 : simt::lowest_bit(contenders);
  index = simt::shuffle(index, (simt::lane_index() & 16) + winner);

  // Where that does not tell, by the definition.
  if (simt::any(!clear)) {
    Best best{0, -1};
    for_each_candidate(p, group, record, clear ? 0 : in_first, clear ? 0 : in_second, clear ? 0 : outliers,
                       [&](int64_t k) {
                         if (k < 0) return;
                         const double d2 = exact_dist2(p, z, e + k * p.e.row_stride, load_bias(p, group, k));
                         best = better(best, {d2, k});
                       });
    for (int mask = 8; mask > 0; mask /= 2) {
      best = better(best, {simt::shuffle_xor(best.dist2, mask), simt::shuffle_xor(best.index, mask)});
    }
    if (!clear) index = best.index;
  }
  if (!exists || isnan(margin)) return kNoAnswer;
  return look ? index : kOpen;
}

// Decides the rows of a pass. What stays open goes to `list`; where the margin is infinite, so that no filter will
// help, to the last list at once.
static __global__ void __launch_bounds__(kDecideThreads) decide(Problem p, int pass, int tile_rows, int list) {
  const int lane = simt::lane_index();
  const auto items = [](int64_t count) { return divide_up(count, kRowsPerDecideBlock); };
  Cursor cursor;
  int64_t within = 0;
  for (int64_t number = simt::block_index(); find_item(p, pass, number, items, cursor, within);
       number += simt::num_blocks()) {
    const int64_t group = cursor.group, count = pass_rows(p, group, pass);
    const int splits = num_splits(p, pass, count, tile_rows);
    const int64_t first = within * kRowsPerDecideBlock + simt::warp_index() * kRowsPerWarp;
    int64_t mine = kNoAnswer;  // of row first + lane, for lane < kRowsPerWarp
    for (int i = 0; i < kRowsPerWarp; i += 2) {
      const int64_t at = first + i + lane / 16;
      const bool exists = at < count;
      const int64_t row = exists ? pass_row(p, group, pass, at) : 0;
      const int64_t of_lane = simt::shuffle(choose(p, group, row, at, splits, exists), lane % 2 * 16);
      if (lane / 2 == i / 2) mine = of_lane;
    }
    // One lane for a row: D of its code, as it will be returned.
    const int64_t at = first + lane;
    if (lane >= kRowsPerWarp || at >= count) continue;
    const int64_t row = pass_row(p, group, pass, at), out = output_row(p, group, row);
    if (mine == kOpen) {
      const int to = p.margin[group * p.rows + row] < INFINITY ? list : 1;
      p.open[to][group * p.rows + simt::atomic_add(&p.facts[group].num_open[to], 1)] = row;
    } else if (mine == kNoAnswer) {
      write_answer(p, out, NAN, 0);
    } else {
      const int64_t e = e_offset(p, group) + mine * p.e.row_stride;
      write_answer(p, out, exact_dist2(p, z_offset(p, group, row), e, load_bias(p, group, mine)), mine);
    }
  }
}

// All codes of the rows that both decisions left open. A thread takes every 256th code, and computes its D to all rows
// of the block's item at once, so that a code is read once for them: a collapsed codebook leaves every row open.
static __global__ void __launch_bounds__(kExactThreads) search_exactly(Problem p) {
  const int thread = simt::thread_index();
  simt::SharedMemory memory;
  const auto z_chunk = memory.take<double>(kExactRows * kExactChunk);
  const auto dist2s = memory.take<double>(kExactThreads);
  const auto indices = memory.take<int64_t>(kExactThreads);
  const auto rows = memory.take<int64_t>(kExactRows);
  const auto rows_per_item = [&](int64_t count) {  // few while there are blocks for all
    const int64_t wanted = divide_up(count * p.num_groups, simt::num_blocks());
    return wanted < kExactRows ? wanted : int64_t(kExactRows);
  };
  const auto items = [&](int64_t count) { return divide_up(count, rows_per_item(count)); };
  Cursor cursor;
  int64_t within = 0;
  for (int64_t number = simt::block_index(); find_item(p, 2, number, items, cursor, within);
       number += simt::num_blocks()) {
    const int64_t group = cursor.group, count = pass_rows(p, group, 2), each = rows_per_item(count);
    const int64_t first = within * each, left = count - first, e = e_offset(p, group);
    const int num_rows = int(left < each ? left : each);
    if (thread < num_rows) rows[thread] = pass_row(p, group, 2, first + thread);
    simt::sync_threads();

    Best best[kExactRows];
    for (int r = 0; r < kExactRows; ++r) best[r] = {0, -1};
    for (int64_t from = 0; from < p.K; from += kExactThreads) {
      const int64_t k = from + thread;
      const double bias = k < p.K ? load_bias(p, group, k) : INFINITY;
      bool valid = is_finite(bias) || bias == -INFINITY;
      double sums[kExactRows] = {};
      for (int chunk = 0; chunk < p.d; chunk += kExactChunk) {
        const int length = p.d - chunk < kExactChunk ? p.d - chunk : kExactChunk;
        for (int i = thread; i < num_rows * kExactChunk; i += kExactThreads) {
          const int j = i % kExactChunk;
          if (j >= length) continue;
          z_chunk[i] = load(p.z, z_offset(p, group, rows[i / kExactChunk]) + (chunk + j) * p.z.col_stride);
        }
        simt::sync_threads();
        for (int j = 0; j < length && valid; ++j) {
          const double e_j = load(p.e, e + k * p.e.row_stride + (chunk + j) * p.e.col_stride);
          valid = is_finite(e_j);
#pragma unroll
          for (int r = 0; r < kExactRows; ++r) {
            if (r >= num_rows) break;
            const double difference = z_chunk[r * kExactChunk + j] - e_j;
            sums[r] += difference * difference;
          }
        }
        simt::sync_threads();  // the chunk is free for the next
      }
      for (int r = 0; r < kExactRows; ++r) {
        const double dist2 = sums[r] + bias;
        if (valid && r < num_rows) best[r] = better(best[r], {isnan(dist2) ? INFINITY : dist2, k});
      }
    }

    for (int r = 0; r < kExactRows; ++r) {
      if (r >= num_rows) break;
      Best own = best[r];
      dist2s[thread] = own.dist2;
      indices[thread] = own.index;
      simt::sync_threads();
      for (int half = kExactThreads / 2; half > 0; half /= 2) {
        if (thread < half) {
          own = better(own, {dist2s[thread + half], indices[thread + half]});
          dist2s[thread] = own.dist2;
          indices[thread] = own.index;
        }
        simt::sync_threads();
      }
      // A row that is open is finite, and there is a code to choose.
      if (thread == 0) write_answer(p, output_row(p, group, rows[r]), own.dist2, own.index);
      simt::sync_threads();  // shared memory is free for the next row
    }
  }
}

}  // namespace vqdm::cuda
