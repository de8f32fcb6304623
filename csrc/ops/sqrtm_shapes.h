// Shapes of sqrtm, shared by its CPU and CUDA implementations.
//
// a [..., d, d] of any floating type and any strides; it is symmetrised as it is read. The user's errors come from the
// Python check; what is checked here is what memory safety needs.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "heads.h"

namespace vqdm {

// root [..., d, d] in float32 (float64 for float64 a); in float64, the square roots of the eigenvalues [..., d] and the
// eigenvectors [..., d, d] (columns), of which the gradient is made.
inline constexpr char kSqrtmSchema[] = "sqrtm(Tensor a) -> (Tensor root, Tensor roots, Tensor vectors)";

struct SqrtmShapes {
  int d = 0;
  bool wide = false;           // root is float64
  std::vector<int64_t> items;  // the leading dimensions
  std::vector<int64_t> a_offset;

  explicit SqrtmShapes(const torch::stable::Tensor& a) {
    require(a.dim() >= 2 && a.size(-1) == a.size(-2) && a.size(-1) >= 1, "not [..., d, d]");
    require(a.size(-1) < (int64_t(1) << 15), "2^15 dimensions and more");
    d = int(a.size(-1));
    wide = a.scalar_type() == torch::headeronly::ScalarType::Double;
    for (int64_t i = 0; i < a.dim() - 2; ++i) items.push_back(a.size(i));
    a_offset = item_offsets(a, items);
  }

  int64_t num_items() const { return int64_t(a_offset.size()); }
  std::vector<int64_t> sizes(int own) const {  // [..., d] or [..., d, d]
    std::vector<int64_t> out = items;
    out.insert(out.end(), own, d);
    return out;
  }

 private:
  static void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string("vqdm::sqrtm: ") + what);
  }
};

}  // namespace vqdm
