// Shapes of nearest_code, shared by its CPU and CUDA implementations.
//
// z [..., N, d], e [..., K, d], bias [..., K]: leading dimensions ("heads") broadcast, as in torch.matmul. The user's
// errors come from the Python check; what is checked here is what memory safety needs.

#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace vqdm {

inline constexpr char kNearestCodeSchema[] =
    "nearest_code(Tensor z, Tensor e, Tensor? bias) -> (Tensor dist2, Tensor indices)";

struct NearestCodeShapes {
  int64_t N = 0, K = 0, num_heads = 1;
  int d = 0;
  std::vector<int64_t> output_sizes;                     // [..., N]
  std::vector<int64_t> z_offset, e_offset, bias_offset;  // of each head, in elements

  NearestCodeShapes(const torch::stable::Tensor& z, const torch::stable::Tensor& e,
                    const std::optional<torch::stable::Tensor>& bias) {
    require(z.dim() >= 2 && e.dim() >= 2 && (!bias || bias->dim() >= 1), "too few dimensions");
    N = z.size(-2);
    K = e.size(-2);
    require(z.size(-1) == e.size(-1) && z.size(-1) >= 1 && z.size(-1) < (int64_t(1) << 24),
            "unequal or empty d, or d of 2^24 and more");
    require(K >= 1, "an empty codebook");
    require(!bias || bias->size(-1) == K, "a bias that is not [..., K]");
    d = int(z.size(-1));
    const int64_t leading = std::max({z.dim() - 2, e.dim() - 2, bias ? bias->dim() - 1 : int64_t(0)});
    std::vector<int64_t> sizes(leading, 1);
    broadcast_into(sizes, z, 2);
    broadcast_into(sizes, e, 2);
    if (bias) broadcast_into(sizes, *bias, 1);
    for (int64_t size : sizes) num_heads *= size;
    z_offset = offsets(sizes, z, 2);
    e_offset = offsets(sizes, e, 2);
    bias_offset = bias ? offsets(sizes, *bias, 1) : std::vector<int64_t>(num_heads, 0);
    output_sizes = sizes;
    output_sizes.push_back(N);
  }

 private:
  static void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string("vqdm::nearest_code: ") + what);
  }

  static void broadcast_into(std::vector<int64_t>& sizes, const torch::stable::Tensor& t, int64_t own) {
    const int64_t leading = t.dim() - own, offset = int64_t(sizes.size()) - leading;
    for (int64_t i = 0; i < leading; ++i) {
      int64_t& size = sizes[offset + i];
      require(size == t.size(i) || size == 1 || t.size(i) == 1, "leading dimensions that do not broadcast");
      if (size == 1) size = t.size(i);
    }
  }

  static std::vector<int64_t> offsets(const std::vector<int64_t>& sizes, const torch::stable::Tensor& t, int64_t own) {
    int64_t heads = 1;
    for (int64_t size : sizes) heads *= size;
    std::vector<int64_t> out(heads, 0);
    const int64_t leading = t.dim() - own, shift = int64_t(sizes.size()) - leading;
    for (int64_t h = 0; h < heads; ++h) {
      int64_t rest = h;
      for (int64_t i = int64_t(sizes.size()) - 1; i >= 0; --i) {
        const int64_t coordinate = rest % sizes[i];
        rest /= sizes[i];
        if (i >= shift && t.size(i - shift) != 1) out[h] += coordinate * t.stride(i - shift);
      }
    }
    return out;
  }
};

}  // namespace vqdm
