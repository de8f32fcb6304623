// Schemas and shapes of the pair_* operators, shared by their CPU and CUDA implementations.
//
// x [H, N, d], y [H, M, d]: floating, any strides (0 where heads share a tensor). The user's errors come from Python's
// checks; what is checked here is what memory safety needs. With c_ij = ||x_i - y_j||, or its square:
//
//   pair_logsumexp   out [H, N] = log sum_j exp(weights_j - scale c_ij)
//   pair_sweep       v' [H, N] and columns [H, M], of a row step and the next column step (CPU only)
//   pair_last_sweep  v' [H, N] and indices [H, N], of the last row step and the assignment (CPU only)
//   pair_sums        out [H, 2] = sum_ij ||x_i - y_j|| - shift, and of its square
//   pair_argmin      out [H, N] = the lowest j that minimises c_ij + bias_j - noise G_ij
//
// weights, u and bias [H, M], v [H, N], scale, shift and noise [H] are float64, and so are sums and potentials; G_ij is
// a Gumbel number of (seed, head, first_row + i, j). Costs are computed in float32 where x and y are no wider and (on
// the CPU) that is good enough: csrc/cpu/pair_precision.h. Indices are decided in float64 always. Formulas:
// csrc/cpu/pair_costs.h.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace vqdm {

inline constexpr char kPairLogsumexpSchema[] =
    "pair_logsumexp(Tensor x, Tensor y, Tensor weights, Tensor scale, bool squared) -> Tensor";
inline constexpr char kPairSweepSchema[] =
    "pair_sweep(Tensor x, Tensor y, Tensor u, Tensor v, Tensor scale, Tensor shift, Tensor log_rows, bool squared, "
    "float log_floor) -> (Tensor v, Tensor columns)";
inline constexpr char kPairLastSweepSchema[] =
    "pair_last_sweep(Tensor x, Tensor y, Tensor u, Tensor v, Tensor scale, Tensor shift, Tensor log_rows, "
    "bool squared, float log_floor) -> (Tensor v, Tensor indices)";
inline constexpr char kPairSumsSchema[] = "pair_sums(Tensor x, Tensor y, Tensor shift) -> Tensor";
inline constexpr char kPairArgminSchema[] =
    "pair_argmin(Tensor x, Tensor y, Tensor bias, Tensor noise, bool squared, int seed, SymInt first_row) -> Tensor";

struct PairShapes {
  int64_t heads = 0, N = 0, M = 0;
  int d = 0;
  bool wide = false;  // costs in float64

  PairShapes(const char* op, const torch::stable::Tensor& x, const torch::stable::Tensor& y) : op_(op) {
    require(x.dim() == 3 && y.dim() == 3, "not three dimensions");
    heads = x.size(0);
    N = x.size(1);
    M = y.size(1);
    require(y.size(0) == heads && y.size(2) == x.size(2), "unequal heads or d");
    require(x.size(2) >= 1 && x.size(2) < (int64_t(1) << 24), "empty d, or d of 2^24 and more");
    d = int(x.size(2));
    using torch::headeronly::ScalarType;
    wide = x.scalar_type() == ScalarType::Double || y.scalar_type() == ScalarType::Double;
  }

  // Of each head, or of each row of y in each head.
  void require_per_head(const torch::stable::Tensor& t) const {
    require(float64(t) && t.dim() == 1 && t.size(0) == heads, "a factor that is not float64 [H]");
  }
  void require_per_row(const torch::stable::Tensor& t) const {
    require(float64(t) && t.dim() == 2 && t.size(0) == heads && t.size(1) == N, "numbers that are not float64 [H, N]");
  }
  void require_per_code(const torch::stable::Tensor& t) const {
    require(float64(t) && t.dim() == 2 && t.size(0) == heads && t.size(1) == M, "weights that are not float64 [H, M]");
  }

 private:
  static bool float64(const torch::stable::Tensor& t) {
    return t.scalar_type() == torch::headeronly::ScalarType::Double;
  }
  void require(bool condition, const char* what) const {
    if (!condition) throw std::invalid_argument(std::string("vqdm::") + op_ + ": " + what);
  }

  const char* op_;
};

}  // namespace vqdm
