// Shapes of code_sums, shared by its CPU and CUDA implementations.
//
// z [..., N, d], indices [..., N]: leading dimensions ("heads") are equal. The user's errors come from the Python
// check; what is checked here is what memory safety needs.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "heads.h"

namespace vqdm {

inline constexpr char kCodeSumsSchema[] =
    "code_sums(Tensor z, Tensor indices, SymInt num_codes) -> (Tensor sums, Tensor counts)";

struct CodeSumsShapes {
  int64_t N = 0, K = 0, num_heads = 1;
  int d = 0;
  std::vector<int64_t> sums_sizes, counts_sizes;  // [..., K, d], [..., K]
  std::vector<int64_t> z_offset, indices_offset;  // of each head, in elements

  CodeSumsShapes(const torch::stable::Tensor& z, const torch::stable::Tensor& indices, int64_t num_codes)
      : K(num_codes) {
    require(z.dim() >= 2 && indices.dim() == z.dim() - 1, "unequal dimensions");
    for (int64_t i = 0; i < indices.dim(); ++i) require(z.size(i) == indices.size(i), "unequal sizes");
    require(indices.scalar_type() == torch::headeronly::ScalarType::Long, "indices that are not int64");
    require(K >= 1, "no codes");
    require(z.size(-1) < (int64_t(1) << 24), "2^24 dimensions and more");
    N = z.size(-2);
    d = int(z.size(-1));
    for (int64_t i = 0; i < z.dim() - 2; ++i) {
      num_heads *= z.size(i);
      counts_sizes.push_back(z.size(i));
    }
    z_offset = item_offsets(z, counts_sizes);
    indices_offset = item_offsets(indices, counts_sizes);
    counts_sizes.push_back(K);
    sums_sizes = counts_sizes;
    sums_sizes.push_back(d);
  }

 private:
  static void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string("vqdm::code_sums: ") + what);
  }
};

}  // namespace vqdm
