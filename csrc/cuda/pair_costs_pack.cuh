// Steps 1 and 2 of pair_costs: a centre and a unit, and x and y as the reductions read them.

#pragma once

#include "pair_costs_problem.cuh"
#include "reduce.cuh"

namespace vqdm::cuda {

inline constexpr int kSampledRows = 256;
inline constexpr int kHalvesUnits = 2 * kPairTile / 16 * 32;  // 16-byte units of a tile and 16 dimensions: two pieces

inline constexpr int kMeasureThreads = 1024;

inline int measure_pairs_shared_bytes() {
  return (2 * kMeasureThreads + kMostWarps) * int(sizeof(double));
}

// Centre: the mean of a sample of y. Unit: the inverse of the sample's typical norm, where typical is the geometric
// mean, which a few outliers hardly move. Any centre and unit give right answers; good ones keep digits. One block per
// head, which has nothing to wait for but its own loads: hence as many threads as there can be.
template <typename T>
static __global__ void __launch_bounds__(kMeasureThreads) measure_pairs(PairProblem<T> p) {
  const int64_t head = simt::block_index(), y = head * p.y.head_stride[0];
  const int thread = simt::thread_index();
  simt::SharedMemory memory;
  const auto sums = memory.take<double>(kMeasureThreads);
  const auto counts = memory.take<double>(kMeasureThreads);
  const auto partial = memory.take<double>(kMostWarps);
  double* centre = p.centre + head * p.d;
  const int64_t samples = p.M < kSampledRows ? p.M : kSampledRows, step = p.M / samples;
  int width = 32;  // threads side by side, for as many dimensions
  while (width < p.d && width < kMeasureThreads) width *= 2;
  for (int first = 0; first < p.d; first += width) {
    const int j = first + thread % width;
    double sum = 0, count = 0;
#pragma unroll 8
    for (int64_t s = thread / width; s < samples; s += kMeasureThreads / width) {
      const double x = j < p.d ? load(p.y, y + s * step * p.y.row_stride + j * p.y.col_stride) : NAN;
      sum += is_finite(x) ? x : 0.0;
      count += is_finite(x) ? 1.0 : 0.0;
    }
    sums[thread] = sum;
    counts[thread] = count;
    simt::sync_threads();
    if (thread < width && j < p.d) {
      for (int other = thread + width; other < kMeasureThreads; other += width) {
        sum += sums[other];
        count += counts[other];
      }
      const double mean = count == 0 ? 0.0 : double(T(sum / count));
      centre[j] = is_finite(mean) ? mean : 0.0;
    }
    simt::sync_threads();
  }

  constexpr int kLanes = kMeasureThreads / kSampledRows;  // for a row
  double norm2 = 0;
#pragma unroll 8
  for (int j = thread % kLanes; j < p.d; j += kLanes) {
    const int64_t s = thread / kLanes;
    const double x = s < samples ? load(p.y, y + s * step * p.y.row_stride + j * p.y.col_stride) - centre[j] : 0.0;
    norm2 += x * x;
  }
  norm2 = sum_over(kLanes, norm2);
  const bool counts_here = is_finite(norm2) && norm2 > 0;
  const double exponents = block_sum(counts_here ? ilogb(norm2) : 0.0, partial);  // kLanes times each
  const double counted = block_sum(counts_here ? 1.0 : 0.0, partial);
  double largest = -INFINITY;
  const int64_t weighed = p.op == PairOp::kLogsumexp ? p.M : 0;
#pragma unroll 8
  for (int64_t k = thread; k < weighed; k += kMeasureThreads) {
    const double weight = load(p.weights, head * p.weights.head_stride[0] + k * p.weights.row_stride);
    largest = is_finite(weight) ? fmax(weight, largest) : largest;
  }
  largest = warp_max(largest);
  if (simt::lane_index() == 0) partial[simt::warp_index()] = largest;
  simt::sync_threads();
  if (thread > 0) return;
  for (int w = 0; w < kMeasureThreads / 32; ++w) largest = fmax(double(partial[w]), largest);
  const int most = sizeof(T) == sizeof(double) ? 400 : 100;  // keeps the unit and its square far inside the range
  int exponent = counted == 0 ? 0 : -int(exponents / (2 * counted));
  exponent = exponent > most ? most : exponent < -most ? -most : exponent;
  p.facts[head] = {ldexp(1.0, exponent), is_finite(largest) ? largest : 0.0};
}

// Writes x0, x1 of dimensions 2 pair, 2 pair + 1 as two pieces, x = first + second + less than 2^-22 |x|, to a tile
// [steps, 2 pieces, 8 fragments, 32 lanes] of 16 bytes. A fragment is 16 members by 16 dimensions: of rows, one left
// operand of mma.m16n8k16; of codes, two right operands side by side.
__device__ inline void write_halves(uint32_t* tile, bool rows, int place, int pair, float x0, float x1) {
  const int slot = slot_of(place % 16), in_step = pair % 8, lane = slot % 8 * 4 + in_step % 4;
  const int reg = rows ? in_step / 4 * 2 + slot / 8 : slot / 8 * 2 + in_step / 4;
  uint32_t* word = tile + (int64_t(pair / 8) * kHalvesUnits + place / 16 * 32 + lane) * 4 + reg;
  const uint16_t first0 = simt::half_from_float(x0), first1 = simt::half_from_float(x1);
  const uint16_t second0 = simt::half_from_float(x0 - simt::float_from_half(first0));
  const uint16_t second1 = simt::half_from_float(x1 - simt::float_from_half(first1));
  word[0] = uint32_t(first0) | uint32_t(first1) << 16;
  word[kHalvesUnits / 2 * 4] = uint32_t(second0) | uint32_t(second1) << 16;
}

// Powers of two by which numbers enter half precision: rows each by their own, codes all by one. Where a number's
// second piece is subnormal, its error is 2^-25, beside numbers of about 2^14 and 2^8.
inline constexpr int kRowExponent = 14;
inline constexpr float kCodeFactor = 0x1p8f;

// One block per head and tile of x, and of y; a few lanes for each vector.
template <typename T>
static __global__ void __launch_bounds__(kPairThreads) pack_pairs(PairProblem<T> p) {
  const int64_t tiles = p.row_tiles + p.code_tiles;
  const int64_t head = simt::block_index() / tiles, in_head = simt::block_index() % tiles;
  const bool of_x = in_head < p.row_tiles;
  const int64_t tile = of_x ? in_head : in_head - p.row_tiles, count = of_x ? p.N : p.M;
  const int64_t tile_of_all = head * (of_x ? p.row_tiles : p.code_tiles) + tile;
  const Operand& from = of_x ? p.x : p.y;
  const double* centre = p.centre + head * p.d;
  const T unit = T(p.facts[head].unit);
  const bool halves = p.depth_steps > 0;
  // Norms beyond which squares, or codes in half precision, might overflow.
  const T most = of_x || !halves ? (sizeof(T) == sizeof(double) ? T(0x1p400) : T(0x1p50f)) : T(64);
  void* packed = of_x ? p.packed_x : p.packed_y;

  const int lanes = lanes_per_vector(p.d), own = simt::thread_index() % lanes;
  for (int place = simt::thread_index() / lanes; place < kPairTile; place += kPairThreads / lanes) {
    const int64_t i = tile * kPairTile + place, out = tile_of_all * kPairTile + place;
    const bool there = i < count;
    const int64_t start = head * from.head_stride[0] + i * from.row_stride;
    const auto raw = [&](int j) { return there && j < p.d ? load_as(from, start + j * from.col_stride, T(0)) : T(0); };
    const auto number = [&](int j) { return there && j < p.d ? (raw(j) - T(centre[j])) * unit : T(0); };
    double norm2 = 0;
    T largest = 0;
    bool finite = true;
#pragma unroll 8
    for (int j = own; j < p.d; j += lanes) {
      const T x = number(j);
      finite = finite && is_finite(double(raw(j)));  // what overflows when it is centred or squared is finite
      norm2 += double(x) * double(x);
      largest = fmax(T(fabs(x)), largest);
    }
    norm2 = sum_over(lanes, norm2);
    finite = all_over(lanes, finite);
    for (int mask = lanes / 2; mask > 0; mask /= 2) largest = fmax(largest, simt::shuffle_xor(largest, mask));
    const bool usable = there && finite && norm2 < double(most) * double(most);
    T factor = T(of_x || !halves ? 1 : kCodeFactor);  // by which numbers are packed
    if (of_x && halves && usable && largest > T(0x1p-100f)) {
      factor = T(ldexp(1.0, kRowExponent - 1 - ilogb(double(largest))));
    }
    if (halves) {
      uint32_t* words = static_cast<uint32_t*>(packed) + tile_of_all * p.depth_steps * kHalvesUnits * 4;
#pragma unroll 4
      for (int pair = own; pair < p.depth_steps * 8; pair += lanes) {
        const T x0 = usable ? number(2 * pair) * factor : T(0), x1 = usable ? number(2 * pair + 1) * factor : T(0);
        write_halves(words, of_x, place, pair, float(x0), float(x1));
      }
    } else {
      T* numbers = static_cast<T*>(packed) + tile_of_all * p.d * kPairTile + place;
#pragma unroll 8
      for (int j = own; j < p.d; j += lanes) numbers[int64_t(j) * kPairTile] = usable ? number(j) : T(0);
    }
    if (own > 0) continue;
    if (of_x) {
      p.row_norm2[out] = usable ? T(norm2) : there && !finite ? T(NAN) : T(0);
      p.row_near[out] = usable ? T(norm2) * p.near_share + p.near_floor : there ? T(INFINITY) : T(-INFINITY);
      p.row_factor[out] = usable ? T(-2) / factor / T(halves ? kCodeFactor : 1) : T(0);
      continue;
    }
    // Beyond the last code, a distance that is finite and counts for nothing.
    p.code_norm2[out] = usable ? T(norm2) : !there ? T(0x1p60f) : finite ? T(-INFINITY) : T(NAN);
    const double weight = p.op != PairOp::kSums && there
                              ? load(p.weights, head * p.weights.head_stride[0] + i * p.weights.row_stride)
                              : 0;
    if (p.op == PairOp::kLogsumexp) {
      p.code_weight[out] = there ? T((weight - p.facts[head].reference) * kLog2E) : T(-INFINITY);
    } else if (p.op == PairOp::kSums) {
      p.code_weight[out] = there ? T(1) : T(0);
    } else {
      p.code_weight[out] = there ? T(weight * cost_unit(p, head)) : T(0x1p100f);
    }
  }
}

}  // namespace vqdm::cuda
