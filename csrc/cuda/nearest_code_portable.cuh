// Step 5 of nearest_code, and the whole filter where tensor cores do not serve: scores in float32, any d, any device.
//
//   score[i][k] = packed_bias[k] + sum_j (-2 x'_ij) e'_kj
//
// The ordinary tiled product: 64 rows by 128 codes, 16 dimensions at a time, centred on the way into shared memory;
// each thread has 4 rows and one group of 16 codes.

#pragma once

#include "nearest_code_codes.cuh"

namespace vqdm::cuda {

inline constexpr int kPortableRows = 64;
inline constexpr int kPortableThreads = 128;         // 16 bands of 4 rows by 8 groups of codes
inline constexpr int kChunk = 16;                    // dimensions at a time
inline constexpr int kRowPitch = kPortableRows + 4;  // keeps four rows aligned to 16 bytes, and banks apart
inline constexpr int kCodePitch = kTileCodes + 4;

inline int portable_shared_bytes() {
  return kChunk * (kRowPitch + kCodePitch) * int(sizeof(float)) + kPortableRows * int(sizeof(int64_t));
}

// Where code c of a tile stands in its line of shared memory: the four that a thread reads at once side by side, and
// those of the 8 threads of a band in different banks.
__device__ inline int code_place(int c) {
  return c % kGroupCodes / 4 * 32 + c / kGroupCodes * 4 + c % 4;
}

__device__ inline RowFacts measure_row(const Problem& p, int64_t group, int64_t z, bool exists, int lanes) {
  const float* centre = p.centre + group * p.d;
  const double scale = p.facts[group].scale;
  float norm2 = 0;
  bool finite = true;
#pragma unroll 8
  for (int j = simt::lane_index() % lanes; j < p.d; j += lanes) {
    const float x = exists ? load_centred(p, p.z, z + j * p.z.col_stride, centre[j], scale, finite) : 0.0f;
    norm2 += x * x;
  }
  return {sqrtf(sum_over(lanes, norm2)), 0.0f, all_over(lanes, finite)};
}

static __global__ void __launch_bounds__(kPortableThreads) filter_portably(Problem p, int pass) {
  const int thread = simt::thread_index();
  const int band = thread / 8, code_group = thread % 8;
  simt::SharedMemory memory;
  const auto x = memory.take<float>(kChunk * kRowPitch);
  const auto e = memory.take<float>(kChunk * kCodePitch);
  const auto z_offsets = memory.take<int64_t>(kPortableRows);
  const auto x_fours = x.as<float4>();
  const auto e_fours = e.as<float4>();

  FilterItem item;
  Cursor cursor;
  for (int64_t number = simt::block_index(); find_filter_item(p, pass, kPortableRows, number, cursor, item);
       number += simt::num_blocks()) {
    const CodeFacts facts = p.facts[item.group];
    const float* centre = p.centre + item.group * p.d;
    const int64_t codes = e_offset(p, item.group);
    const int lanes = lanes_per_vector(p.d);
    for (int i = thread / lanes; i < kPortableRows; i += kPortableThreads / lanes) {
      const int64_t at = item.first + i;
      const bool exists = at < item.count, first = thread % lanes == 0;
      const int64_t row = exists ? pass_row(p, item.group, pass, at) : 0;
      const int64_t z = exists ? z_offset(p, item.group, row) : 0;
      if (first) z_offsets[i] = exists ? z : -1;
      if (item.split > 0) continue;
      const RowFacts found = measure_row(p, item.group, z, exists, lanes);
      if (!first || !exists) continue;
      const float addition = 1.01f * float(p.d + 4) * 0x1p-24f;
      p.margin[item.group * p.rows + row] = margin_of(facts, found, p.max_outliers, p.d, addition, 0.0f);
    }
    simt::sync_threads();

    RowMinimum minima[4];
    bool unused = true;  // whether numbers are finite was looked at before
    for (int64_t tile = item.tile_begin; tile < item.tile_end; ++tile) {
      float acc[4][kGroupCodes] = {};
      for (int first = 0; first < p.d; first += kChunk) {
        const int in_chunk = thread % kChunk, j = first + in_chunk;
        for (int i = thread / kChunk; i < kPortableRows; i += kPortableThreads / kChunk) {
          const int64_t z = z_offsets[i];
          const bool there = z >= 0 && j < p.d;
          const float value =
              there ? load_centred(p, p.z, z + j * p.z.col_stride, centre[j], facts.scale, unused) : 0.0f;
          x[in_chunk * kRowPitch + i] = -2.0f * value;
        }
        for (int c = thread / kChunk; c < kTileCodes; c += kPortableThreads / kChunk) {
          const int64_t k = tile * kTileCodes + c;
          const bool there = k < p.K && j < p.d;
          const int64_t at = codes + k * p.e.row_stride + j * p.e.col_stride;
          const float value = there ? load_centred(p, p.e, at, centre[j], facts.scale, unused) : 0.0f;
          // What is too far is an outlier's: the filter passes over it, and Inf would spoil the sums with NaN.
          e[in_chunk * kCodePitch + code_place(c)] = fabsf(value) <= kFar ? value : 0.0f;
        }
        simt::sync_threads();
#pragma unroll 4
        for (int k = 0; k < kChunk; ++k) {
          const float4 four = x_fours[k * (kRowPitch / 4) + band];
          const float a[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            const float4 b = e_fours[k * (kCodePitch / 4) + q * 8 + code_group];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
              acc[r][4 * q] = fmaf(a[r], b.x, acc[r][4 * q]);
              acc[r][4 * q + 1] = fmaf(a[r], b.y, acc[r][4 * q + 1]);
              acc[r][4 * q + 2] = fmaf(a[r], b.z, acc[r][4 * q + 2]);
              acc[r][4 * q + 3] = fmaf(a[r], b.w, acc[r][4 * q + 3]);
            }
          }
        }
        simt::sync_threads();
      }
      const float* bias = p.packed_bias + (item.group * p.num_tiles + tile) * kTileCodes + code_group * kGroupCodes;
      for (int r = 0; r < 4; ++r) {
        float smallest = INFINITY;
        for (int i = 0; i < kGroupCodes; ++i) smallest = fminf(smallest, acc[r][i] + bias[i]);
        minima[r].see(smallest, int(tile) * (kTileCodes / kGroupCodes) + code_group);
      }
    }

    for (int r = 0; r < 4; ++r) {
      Record record = minima[r].record();
      for (int mask = 1; mask < 8; mask *= 2) record = merged_with_lane(record, mask);
      const int64_t at = item.first + band * 4 + r;
      if (code_group == 0 && at < item.count) record_of(p, item, at) = record;
    }
    simt::sync_threads();  // shared memory is free for the next item
  }
}

}  // namespace vqdm::cuda
