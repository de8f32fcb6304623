// Steps 1 and 2 of nearest_code: what the filters need to know of the codes, and the codes as tensor cores take them.

#pragma once

#include "nearest_code_problem.cuh"

namespace vqdm::cuda {

inline constexpr int kCodesThreads = 256;
inline constexpr int kCodesWarps = kCodesThreads / 32;
inline constexpr int kSampledCodes = 256;  // looked at for centre and scale

inline int measure_shared_bytes() {
  return 2 * kCodesThreads * int(sizeof(double));
}
inline int pack_shared_bytes() {
  return 4 * kCodesWarps * int(sizeof(float));
}

// Centre: the mean of a sample. Scale: the power of two that brings the sample's typical norm to about one, where
// typical is the geometric mean, which a few outliers hardly move. Any centre and scale give right answers; good ones
// make the bound tight. One block per group. Also sets the facts to what pack_codes() adds to.
static __global__ void measure_codes(Problem p) {
  const int64_t group = simt::block_index(), e = e_offset(p, group);
  const int lane = simt::lane_index(), warp = simt::warp_index();
  simt::SharedMemory memory;
  const auto sums = memory.take<double>(kCodesThreads);
  const auto counts = memory.take<int>(kCodesThreads);
  const int64_t samples = p.K < kSampledCodes ? p.K : kSampledCodes, step = p.K / samples;
  float* centre = p.centre + group * p.d;

  for (int first = 0; first < p.d; first += 32) {
    const int j = first + lane;
    double sum = 0;
    int count = 0;
#pragma unroll 8
    for (int64_t s = warp; s < samples; s += kCodesWarps) {
      const double x = j < p.d ? load(p.e, e + s * step * p.e.row_stride + j * p.e.col_stride) : NAN;
      sum += is_finite(x) ? x : 0.0;
      count += is_finite(x) ? 1 : 0;
    }
    sums[warp * 32 + lane] = sum;
    counts[warp * 32 + lane] = count;
    simt::sync_threads();
    if (warp == 0 && j < p.d) {
      for (int w = 1; w < kCodesWarps; ++w) {
        sum += sums[w * 32 + lane];
        count += counts[w * 32 + lane];
      }
      const float mean = count == 0 ? 0.0f : float(sum / count);
      centre[j] = is_finite(mean) ? mean : 0.0f;
    }
    simt::sync_threads();
  }

  // One thread for each sampled code.
  int exponents = 0, counted = 0;  // of squared norms
  if (simt::thread_index() < samples) {
    const int64_t k = simt::thread_index() * step;
    double norm2 = 0;
#pragma unroll 8
    for (int j = 0; j < p.d; ++j) {
      const double x = load(p.e, e + k * p.e.row_stride + j * p.e.col_stride) - double(centre[j]);
      norm2 += x * x;
    }
    const double bias = fabs(load_bias(p, group, k));
    if (is_finite(bias) && bias > norm2) norm2 = bias;
    if (is_finite(norm2) && norm2 > 0) {
      exponents = ilogb(norm2);
      counted = 1;
    }
  }
  exponents = sum_over(32, exponents);
  counted = sum_over(32, counted);
  if (lane == 0) {
    counts[warp] = exponents;
    counts[kCodesWarps + warp] = counted;
  }
  simt::sync_threads();
  if (simt::thread_index() > 0) return;
  exponents = counted = 0;
  for (int w = 0; w < kCodesWarps; ++w) {
    exponents += counts[w];
    counted += counts[kCodesWarps + w];
  }
  const int most = p.in_double ? 400 : 100;  // keeps the scale, its square and its inverse far inside the range
  int exponent = counted == 0 ? 0 : -(exponents / (2 * counted));
  exponent = exponent > most ? most : exponent < -most ? -most : exponent;
  CodeFacts facts{};
  facts.scale = ldexp(1.0, exponent);
  p.facts[group] = facts;
}

// Where the two numbers 2 pair, 2 pair + 1 of code c of a tile stand, in 32-bit words from the tile's start.
//
// A fragment product takes 16 dimensions of 8 codes; of a tile's 128 codes, 64 go to each of two columns of warps, as 8
// products. A thread then holds scores of 2 codes of each product, 16 in all, and codes are dealt out such that these
// are 16 consecutive ones: a group. The 4 registers of two products stand together, one 16-byte load for each thread.
__device__ inline int64_t packed_word(int depth_steps, int64_t tile, int c, int pair) {
  const int step = pair / 8, in_step = pair % 8;
  const int half_tile = c / 64, quad_thread = c % 64 / kGroupCodes, i = c % kGroupCodes;
  const int product = i / 2, column = 2 * quad_thread + i % 2;
  const int lane = column * 4 + in_step % 4, reg = product % 2 * 2 + in_step / 4;
  const int64_t unit = (((tile * depth_steps + step) * 2 + half_tile) * 4 + product / 2) * 32 + lane;
  return unit * 4 + reg;
}

// One block per group and tile; a few lanes for each code.
static __global__ void pack_codes(Problem p, bool for_tensor_cores) {
  const int64_t group = simt::block_index() / p.num_tiles, tile = simt::block_index() % p.num_tiles;
  const int lanes = lanes_per_vector(p.d), own = simt::thread_index() % lanes;
  CodeFacts& facts = p.facts[group];
  const float* centre = p.centre + group * p.d;
  const double scale = facts.scale;
  uint32_t* packed = !for_tensor_cores
                         ? nullptr
                         : reinterpret_cast<uint32_t*>(p.packed + group * p.num_tiles * p.depth_steps * kStepUnits);
  const int pairs = for_tensor_cores ? p.depth_steps * 8 : (p.d + 1) / 2;

  float most[4] = {};  // norm, residual, bias, packed bias
  for (int c = simt::thread_index() / lanes; c < kTileCodes; c += kCodesThreads / lanes) {
    const int64_t k = tile * kTileCodes + c, e = e_offset(p, group) + k * p.e.row_stride;
    bool valid = k < p.K;
    double norm2 = 0;
    float residual2 = 0;
#pragma unroll 4
    for (int pair = own; pair < pairs; pair += lanes) {
      uint32_t word = 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int j = 2 * pair + i;
        if (k >= p.K || j >= p.d) continue;
        const float x = load_centred(p, p.e, e + j * p.e.col_stride, centre[j], scale, valid);
        norm2 += double(x) * double(x);
        if (!(fabsf(x) <= kFar)) continue;  // of an outlier, which the filter passes over
        const uint16_t half = simt::half_from_float(x);
        const float lost = x - simt::float_from_half(half);
        residual2 += lost * lost;
        word |= uint32_t(half) << (16 * i);
      }
      if (for_tensor_cores) packed[packed_word(p.depth_steps, tile, c, pair)] = word;
    }
    norm2 = sum_over(lanes, norm2);
    residual2 = sum_over(lanes, residual2);
    valid = all_over(lanes, valid);
    const double bias = valid ? load_bias(p, group, k) : 0.0, scaled_bias = bias * scale * scale;
    valid = valid && (is_finite(bias) || bias == -INFINITY);
    const bool outlier = !(norm2 <= kFar * kFar && fabs(scaled_bias) <= kFar * kFar);
    const float packed_bias = valid && !outlier ? float(norm2 + scaled_bias) : INFINITY;
    if (own == 0) {
      p.packed_bias[(group * p.num_tiles + tile) * kTileCodes + c] = packed_bias;
      if (valid) facts.any_valid = 1;
      if (valid && outlier) {
        const int slot = simt::atomic_add(&facts.num_outliers, 1);
        if (slot < p.max_outliers) p.outliers[group * p.max_outliers + slot] = int(k);
      }
    }
    if (!valid || outlier) continue;
    most[0] = fmaxf(most[0], float(sqrt(norm2)));
    most[1] = fmaxf(most[1], sqrtf(residual2));
    most[2] = fmaxf(most[2], fabsf(float(scaled_bias)));
    most[3] = fmaxf(most[3], fabsf(packed_bias));
  }

  simt::SharedMemory memory;
  const auto of_warps = memory.take<float>(4 * kCodesWarps);
  for (int i = 0; i < 4; ++i) {
    const float largest = max_over(32, most[i]);
    if (simt::lane_index() == 0) of_warps[i * kCodesWarps + simt::warp_index()] = largest;
  }
  simt::sync_threads();
  const int i = simt::thread_index();
  if (i >= 4) return;
  float largest = 0;
  for (int w = 0; w < kCodesWarps; ++w) largest = fmaxf(largest, of_warps[i * kCodesWarps + w]);
  float* const targets[4] = {&facts.norm, &facts.residual, &facts.bias, &facts.packed_bias};
  // Floats that are not negative are ordered as their bits are.
  simt::atomic_max(reinterpret_cast<unsigned*>(targets[i]), simt::bits_from_float(largest));
}

}  // namespace vqdm::cuda
