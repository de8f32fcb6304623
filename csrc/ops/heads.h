// The leading dimensions ("heads", or the items of a batch) of the tensors of one call.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace vqdm {

// Where each item of t starts, in elements, for leading dimensions of these sizes, which are t's own.
inline std::vector<int64_t> item_offsets(const torch::stable::Tensor& t, const std::vector<int64_t>& sizes) {
  int64_t items = 1;
  for (const int64_t size : sizes) items *= size;
  std::vector<int64_t> offsets(items, 0);
  for (int64_t item = 0; item < items; ++item) {
    int64_t rest = item;
    for (int64_t i = int64_t(sizes.size()) - 1; i >= 0; --i) {
      offsets[item] += rest % sizes[i] * t.stride(i);
      rest /= sizes[i];
    }
  }
  return offsets;
}

}  // namespace vqdm
