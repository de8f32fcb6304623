// Step 3 of nearest_code: scores of all codes by tensor cores, in half precision with float32 sums.
//
//   score[i][k] = packed_bias[k] - 2 t_i sum_j x^[i][j] e^[k][j]      x^ = half(x' / t_i), e^ = half(e')
//
// t_i, a power of two for each row, keeps rows of any size within half precision. A block takes 128 rows, which stay in
// shared memory as fragments, and streams the packed codes of its split past them: 16 KB a stage, as they lie in
// memory, whatever d. Of the 16 scores that a thread has of a row and a tile, it keeps the smallest; N x K is never
// stored.

#pragma once

#include "nearest_code_codes.cuh"

namespace vqdm::cuda {

inline constexpr int kTensorRows = 128;
inline constexpr int kTensorThreads = 256;  // 4 x 2 warps, each with 32 rows and 64 codes
inline constexpr int kStageSteps = 4, kStages = 3;
inline constexpr int kStageUnits = kStageSteps * kStepUnits;

inline int tensor_core_shared_bytes(int depth_steps) {
  return depth_steps * kTensorRows * 32 + kStages * kStageUnits * 16 + kTensorRows * int(sizeof(float)) +
         5 * 2 * kTensorRows * int(sizeof(float));
}

// Where the numbers 2 pair, 2 pair + 1 of a row stand, in 32-bit words: fragments of 16 rows and 16 dimensions.
__device__ inline int row_word(int row, int pair) {
  const int step = pair / 8, in_step = pair % 8, in_fragment = row % 16;
  const int lane = in_fragment % 8 * 4 + in_step % 4, reg = in_step / 4 * 2 + in_fragment / 8;
  return ((step * (kTensorRows / 16) + row / 16) * 32 + lane) * 4 + reg;
}

// Reads a row, writes its half-precision fragments and its factor -2 t; by `lanes` lanes, which all get the facts.
__device__ inline RowFacts prepare_row(const Problem& p, int64_t group, int64_t row, bool exists, int lanes, int place,
                                       simt::Shared<uint32_t> words, simt::Shared<float> factors) {
  const int own = simt::lane_index() % lanes;
  const float* centre = p.centre + group * p.d;
  const double scale = p.facts[group].scale;
  const int64_t z = exists ? z_offset(p, group, row) : 0;
  float norm2 = 0, largest = 0;
  bool finite = true;
#pragma unroll 8
  for (int j = own; j < p.d; j += lanes) {
    const float x = exists ? load_centred(p, p.z, z + j * p.z.col_stride, centre[j], scale, finite) : 0.0f;
    norm2 += x * x;
    largest = fmaxf(largest, fabsf(x));
  }
  norm2 = sum_over(lanes, norm2);
  largest = max_over(lanes, largest);
  finite = all_over(lanes, finite);
  const bool usable = exists && finite && norm2 < kTooLarge * kTooLarge && largest > 0x1p-100f;
  const float t = usable ? ldexpf(1.0f, ilogbf(largest) + 1) : 1.0f;

  float residual2 = 0;
#pragma unroll 4
  for (int pair = own; pair < p.depth_steps * 8; pair += lanes) {
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int j = 2 * pair + i;
      if (!usable || j >= p.d) continue;
      const float x = load_centred(p, p.z, z + j * p.z.col_stride, centre[j], scale, finite) / t;
      const uint16_t half = simt::half_from_float(x);
      const float lost = x - simt::float_from_half(half);
      residual2 += lost * lost;
      word |= uint32_t(half) << (16 * i);
    }
    words[row_word(place, pair)] = word;
  }
  residual2 = sum_over(lanes, residual2);
  if (own == 0) factors[place] = usable ? -2.0f * t : 0.0f;
  // A row that is not usable goes to the filter as zeros: all of it is residual.
  const float norm = sqrtf(norm2);
  return {norm, usable ? t * sqrtf(residual2) : norm, finite};
}

static __global__ void __launch_bounds__(kTensorThreads, 2) filter_by_tensor_cores(Problem p) {
  const int thread = simt::thread_index(), lane = simt::lane_index(), warp = simt::warp_index();
  const int warp_row = warp / 2, warp_column = warp % 2, quad_thread = lane % 4;
  simt::SharedMemory memory;
  const auto rows = memory.take<uint4>(int64_t(p.depth_steps) * kTensorRows * 2);
  const auto stages = memory.take<uint4>(kStages * kStageUnits);
  const auto factors = memory.take<float>(kTensorRows);
  const auto records = memory.take<float>(5 * 2 * kTensorRows);

  FilterItem item;
  Cursor cursor;
  for (int64_t number = simt::block_index(); find_filter_item(p, 0, kTensorRows, number, cursor, item);
       number += simt::num_blocks()) {
    const CodeFacts facts = p.facts[item.group];
    const int lanes = lanes_per_vector(p.d);
    for (int i = thread / lanes; i < kTensorRows; i += kTensorThreads / lanes) {
      const int64_t row = item.first + i;
      const bool exists = row < item.count;
      const RowFacts found = prepare_row(p, item.group, row, exists, lanes, i, rows.as<uint32_t>(), factors);
      if (item.split == 0 && thread % lanes == 0 && exists) {
        const float addition = 1.5f * float(16 * p.depth_steps + 4) * 0x1p-23f;
        p.margin[item.group * p.rows + row] = margin_of(facts, found, p.max_outliers, p.d, addition, facts.residual);
      }
    }
    // The barrier before the first stage makes rows and factors visible.

    const uint4* source = p.packed + (item.group * p.num_tiles + item.tile_begin) * p.depth_steps * kStepUnits;
    const int steps = int(item.tile_end - item.tile_begin) * p.depth_steps;
    const auto fetch = [&](int stage) {
      for (int i = thread; i < kStageUnits; i += kTensorThreads) {
        const int64_t unit = int64_t(stage) * kStageUnits + i;
        if (unit < int64_t(steps) * kStepUnits)
          simt::copy_async(stages, stage % kStages * kStageUnits + i, source + unit);
      }
      simt::commit_copies();  // also where nothing is left, so that groups keep counting stages
    };
    for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);

    RowMinimum minima[4];  // rows g, g + 8 of two fragments
    float acc[2][8][4] = {};
    float4 bias[4];
    int depth = 0;
    int64_t tile = item.tile_begin;
    for (int step = 0; step < steps; ++step) {
      const int stage = step / kStageSteps;
      if (step % kStageSteps == 0) {
        simt::wait_copies<kStages - 2>();
        simt::sync_threads();  // this stage has landed for all, and all are done with the one before
        fetch(stage + kStages - 1);
      }
      if (depth == 0) {
        const float4* from = reinterpret_cast<const float4*>(
            p.packed_bias + (item.group * p.num_tiles + tile) * kTileCodes + warp_column * 64 + quad_thread * 16);
        for (int i = 0; i < 4; ++i) bias[i] = from[i];  // asked for here, needed at the end of the tile
      }
      const int unit = (stage % kStages * kStageSteps + step % kStageSteps) * kStepUnits + warp_column * 128 + lane;
      const uint4 a[2] = {rows[(depth * (kTensorRows / 16) + warp_row * 2) * 32 + lane],
                          rows[(depth * (kTensorRows / 16) + warp_row * 2 + 1) * 32 + lane]};
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const uint4 b = stages[unit + pair * 32];
#pragma unroll
        for (int f = 0; f < 2; ++f) {
          simt::mma_f16(acc[f][2 * pair], a[f], b.x, b.y);
          simt::mma_f16(acc[f][2 * pair + 1], a[f], b.z, b.w);
        }
      }
      if (++depth < p.depth_steps) continue;

#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float factor = factors[warp_row * 32 + r * 8 + lane / 4];
        float smallest = INFINITY;
#pragma unroll
        for (int product = 0; product < 8; ++product) {
          const float4& four = bias[product / 2];
          float* sums = acc[r / 2][product] + r % 2 * 2;
          smallest = fminf(smallest, fmaf(sums[0], factor, product % 2 == 0 ? four.x : four.z));
          smallest = fminf(smallest, fmaf(sums[1], factor, product % 2 == 0 ? four.y : four.w));
          sums[0] = sums[1] = 0.0f;
        }
        minima[r].see(smallest, int(tile) * (kTileCodes / kGroupCodes) + warp_column * 4 + quad_thread);
      }
      depth = 0;
      ++tile;
    }
    simt::wait_copies<0>();

    // Four threads of a warp and two warps have seen parts of each row.
    for (int r = 0; r < 4; ++r) {
      const Record record = merged_with_lane(merged_with_lane(minima[r].record(), 1), 2);
      if (quad_thread == 0) {
        const int place = (warp_row * 32 + r * 8 + lane / 4) * 2 + warp_column;
        records[place] = record.first;
        records[2 * kTensorRows + place] = record.second;
        records[4 * kTensorRows + place] = record.rest;
        records[6 * kTensorRows + place] = simt::float_from_bits(uint32_t(record.first_group));
        records[8 * kTensorRows + place] = simt::float_from_bits(uint32_t(record.second_group));
      }
    }
    simt::sync_threads();
    if (thread < kTensorRows && item.first + thread < item.count) {
      Record both[2];
      for (int c = 0; c < 2; ++c) {
        const int place = thread * 2 + c;
        both[c] = {records[place], records[2 * kTensorRows + place], records[4 * kTensorRows + place],
                   int(simt::bits_from_float(records[6 * kTensorRows + place])),
                   int(simt::bits_from_float(records[8 * kTensorRows + place]))};
      }
      record_of(p, item, item.first + thread) = merged(both[0], both[1]);
    }
    simt::sync_threads();  // shared memory is free for the next item
  }
}

}  // namespace vqdm::cuda
