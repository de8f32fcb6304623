// A strided array of any floating type, and the leading dimensions ("heads") that the arrays of one call share.

#pragma once

#include <cstdint>

namespace vqdm::cuda {

enum class DType { kFloat64, kFloat32, kFloat16, kBFloat16 };

inline constexpr int kMaxHeadDims = 6;

struct Heads {
  int num_dims;
  int64_t size[kMaxHeadDims];

  int64_t count() const {
    int64_t heads = 1;
    for (int i = 0; i < num_dims; ++i) heads *= size[i];
    return heads;
  }
};

// [heads..., rows, columns]; broadcast dimensions have stride 0. A null pointer is an array that is not there.
struct Operand {
  const void* data;
  DType dtype;
  int64_t row_stride, col_stride;  // in elements
  int64_t head_stride[kMaxHeadDims];
};

}  // namespace vqdm::cuda
