// Products x' . y' of a tile by tensor cores: both numbers as two pieces in half precision, three products of pieces,
// float32 sums.
//
// A block's 128 rows stay in shared memory, and the codes of its split stream past them, 16 KB a stage, whatever d.

#pragma once

#include "pair_costs_pack.cuh"

namespace vqdm::cuda {

class TensorCoreProduct {
  static constexpr int kStageSteps = 2, kStages = 3;
  static constexpr int kStageUnits = kStageSteps * kHalvesUnits;
  static constexpr int kPiece = kHalvesUnits / 2;

 public:
  using Number = float;
  static constexpr int kBlocksPerProcessor = 2;
  static constexpr int kScratchBytes = kStages * kStageUnits * 16;
  static int shared_bytes(int depth_steps) { return depth_steps * kHalvesUnits * 16 + kScratchBytes; }

  __device__ TensorCoreProduct(const PairProblem<float>& p, const PairItem& item, simt::SharedMemory& memory)
      : depth_steps_(p.depth_steps),
        units_((item.tile_end - item.tile_begin) * p.depth_steps * kHalvesUnits),
        y_(static_cast<const uint4*>(p.packed_y) +
           (item.head * p.code_tiles + item.tile_begin) * p.depth_steps * kHalvesUnits),
        rows_(memory.take<uint4>(int64_t(p.depth_steps) * kHalvesUnits)),
        stages_(memory.take<uint4>(kStages * kStageUnits)) {
    const uint4* x =
        static_cast<const uint4*>(p.packed_x) + (item.head * p.row_tiles + item.row_tile) * depth_steps_ * kHalvesUnits;
    for (int i = simt::thread_index(); i < depth_steps_ * kHalvesUnits; i += kPairThreads) {
      simt::copy_async(rows_, i, x + i);  // in one group with the first stage
    }
    for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);
  }

  // Of the next tile of codes.
  __device__ void add_to(PairProducts<float>& products) {
    const int lane = simt::lane_index(), warp_row = simt::warp_index() / 2, warp_column = simt::warp_index() % 2;
    for (int depth = 0; depth < depth_steps_; ++depth, ++step_) {
      if (step_ % kStageSteps == 0) {
        simt::wait_copies<kStages - 2>();
        simt::sync_threads();  // this stage has landed for all, and all are done with the one before
        fetch(step_ / kStageSteps + kStages - 1);
      }
      const int of_rows = depth * kHalvesUnits + warp_row * 64 + lane;
      const uint4 first[2] = {rows_[of_rows], rows_[of_rows + 32]};
      const uint4 second[2] = {rows_[of_rows + kPiece], rows_[of_rows + 32 + kPiece]};
      const int of_codes = int(step_ % (kStages * kStageSteps)) * kHalvesUnits + warp_column * 128 + lane;
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const uint4 b = stages_[of_codes + pair * 32], c = stages_[of_codes + pair * 32 + kPiece];
        // Four sums in turn, so that none waits for itself.
        const auto add = [&](const uint4(&rows)[2], const uint4& codes) {
#pragma unroll
          for (int f = 0; f < 2; ++f) {
            simt::mma_f16(products[f][2 * pair], rows[f], codes.x, codes.y);
            simt::mma_f16(products[f][2 * pair + 1], rows[f], codes.z, codes.w);
          }
        };
        add(first, c);
        add(second, b);
        add(first, b);
      }
    }
  }

  // Shared memory for the end, when no product is needed any more.
  __device__ simt::Shared<float> scratch() const {
    simt::wait_copies<0>();
    simt::sync_threads();
    return stages_.as<float>();
  }

 private:
  __device__ void fetch(int64_t stage) {
    for (int i = simt::thread_index(); i < kStageUnits; i += kPairThreads) {
      const int64_t unit = stage * kStageUnits + i;
      if (unit < units_) simt::copy_async(stages_, stage % kStages * kStageUnits + i, y_ + unit);
    }
    simt::commit_copies();  // also where nothing is left, so that groups keep counting stages
  }

  int depth_steps_;
  int64_t units_;  // of all codes of the split
  const uint4* y_;
  simt::Shared<uint4> rows_, stages_;
  int64_t step_ = 0;
};

}  // namespace vqdm::cuda
