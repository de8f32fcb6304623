// Shapes of moments, shared by its CPU and CUDA implementations.
//
// x [N, d] float32 or float64, any strides. The user's errors come from the Python check; what is checked here is what
// memory safety needs.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace vqdm {

// mean [d] and cov [d, d] = sum_i (x_i - mean)(x_i - mean)^T / divisor, float64. Without rows the sums are zeros.
inline constexpr char kMomentsSchema[] = "moments(Tensor x, SymInt divisor) -> (Tensor mean, Tensor cov)";

struct MomentsShapes {
  int64_t N = 0;
  int d = 0;
  bool wide = false;  // float64

  explicit MomentsShapes(const torch::stable::Tensor& x) {
    using torch::headeronly::ScalarType;
    require(x.dim() == 2, "not two dimensions");
    require(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "not float32 or float64");
    require(x.size(1) >= 1, "no columns");
    require(x.size(1) < (int64_t(1) << 15), "2^15 dimensions and more");
    N = x.size(0);
    d = int(x.size(1));
    wide = x.scalar_type() == ScalarType::Double;
  }

 private:
  static void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string("vqdm::moments: ") + what);
  }
};

}  // namespace vqdm
