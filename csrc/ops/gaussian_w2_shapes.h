// Shapes of gaussian_w2, shared by its CPU and CUDA implementations.
//
// means [..., d] and covariances [..., d, d] of any floating types and any strides, with equal leading dimensions;
// covariances are symmetrised as they are read. The user's errors come from the Python check; what is checked here is
// what memory safety needs.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "heads.h"

namespace vqdm {

// w2 [...] in float32 (float64 where an input is float64); its gradients in cov1 and cov2, [..., d, d] in float64, with
// gradients=False [..., 0, 0].
inline constexpr char kGaussianW2Schema[] =
    "gaussian_w2(Tensor mean1, Tensor cov1, Tensor mean2, Tensor cov2, bool gradients) -> "
    "(Tensor w2, Tensor grad_cov1, Tensor grad_cov2)";

struct GaussianW2Shapes {
  int d = 0;
  bool wide = false;           // w2 is float64
  std::vector<int64_t> items;  // the leading dimensions
  std::vector<int64_t> mean1_offset, cov1_offset, mean2_offset, cov2_offset;

  GaussianW2Shapes(const torch::stable::Tensor& mean1, const torch::stable::Tensor& cov1,
                   const torch::stable::Tensor& mean2, const torch::stable::Tensor& cov2) {
    require(mean1.dim() >= 1 && mean1.size(-1) >= 1, "no dimensions");
    require(mean1.size(-1) < (int64_t(1) << 15), "2^15 dimensions and more");
    d = int(mean1.size(-1));
    for (int64_t i = 0; i < mean1.dim() - 1; ++i) items.push_back(mean1.size(i));
    mean1_offset = offsets(mean1, 1);
    cov1_offset = offsets(cov1, 2);
    mean2_offset = offsets(mean2, 1);
    cov2_offset = offsets(cov2, 2);
  }

  int64_t num_items() const { return int64_t(mean1_offset.size()); }
  std::vector<int64_t> gradient_sizes(bool gradients) const {
    std::vector<int64_t> sizes = items;
    sizes.insert(sizes.end(), 2, gradients ? d : 0);
    return sizes;
  }

 private:
  static void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string("vqdm::gaussian_w2: ") + what);
  }

  std::vector<int64_t> offsets(const torch::stable::Tensor& t, int own) {
    const auto leading = int64_t(items.size());
    require(t.dim() == leading + own, "unequal dimensions");
    for (int64_t i = 0; i < leading; ++i) require(t.size(i) == items[i], "unequal leading dimensions");
    for (int64_t i = 0; i < own; ++i) require(t.size(leading + i) == d, "unequal d");
    wide = wide || t.scalar_type() == torch::headeronly::ScalarType::Double;
    return item_offsets(t, items);
  }
};

}  // namespace vqdm
