// Products x' . y' of a tile in T = float or double: any d, any device.
//
// The ordinary tiled product, 16 dimensions at a time through shared memory.

#pragma once

#include "pair_costs_problem.cuh"

namespace vqdm::cuda {

template <typename T>
class PortableProduct {
  static constexpr int kDepth = 16;

 public:
  using Number = T;
  static constexpr int kBlocksPerProcessor = sizeof(T) == sizeof(float) ? 2 : 1;
  static constexpr int kScratchBytes = 2 * kDepth * kPairTile * int(sizeof(T));
  static int shared_bytes(int /* depth_steps */) { return kScratchBytes; }

  __device__ PortableProduct(const PairProblem<T>& p, const PairItem& item, simt::SharedMemory& memory)
      : d_(p.d),
        x_(static_cast<const T*>(p.packed_x) + (item.head * p.row_tiles + item.row_tile) * p.d * kPairTile),
        y_(static_cast<const T*>(p.packed_y) + (item.head * p.code_tiles + item.tile_begin) * p.d * kPairTile),
        of_x_(memory.take<T>(2 * kDepth * kPairTile)),
        of_y_(of_x_.from(kDepth * kPairTile)) {}

  // Of the next tile of codes.
  __device__ void add_to(PairProducts<T>& products) {
    const int row = row_in_tile(0), code = code_in_tile(0) / 4;
    const auto y_fours = of_y_.template as<Four<T>>();
    for (int first = 0; first < d_; first += kDepth) {
      const int depth = d_ - first < kDepth ? d_ - first : kDepth;
      simt::sync_threads();  // all are done with the numbers before
      for (int i = simt::thread_index(); i < depth * kPairTile; i += kPairThreads) {
        of_x_[i] = x_[first * kPairTile + i];
        of_y_[i] = y_[first * kPairTile + i];
      }
      simt::sync_threads();
#pragma unroll 2
      for (int k = 0; k < depth; ++k) {
        T a[kRowsOfThread];
#pragma unroll
        for (int r = 0; r < kRowsOfThread; ++r) a[r] = of_x_[k * kPairTile + row + r / 2 * 16 + r % 2 * 2];
#pragma unroll
        for (int q = 0; q < kCodesOfThread / 4; ++q) {
          const Four<T> b = y_fours[k * (kPairTile / 4) + code + 4 * q];
#pragma unroll
          for (int r = 0; r < kRowsOfThread; ++r) {
#pragma unroll
            for (int c = 0; c < 4; ++c) {
              T& value = at<T>(products, r, 4 * q + c);
              value = fma(a[r], b.x[c], value);
            }
          }
        }
      }
    }
    y_ += int64_t(d_) * kPairTile;
  }

  // Shared memory for the end, when no product is needed any more.
  __device__ simt::Shared<T> scratch() const {
    simt::sync_threads();
    return of_x_;
  }

 private:
  int d_;
  const T* x_;
  const T* y_;
  simt::Shared<T> of_x_, of_y_;
};

}  // namespace vqdm::cuda
