// torch.ops.vqdm.pair_*: schemas and CPU implementations. Formulas and promises: csrc/cpu/pair_costs.h.

#include "../cpu/pair_costs.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "../cpu/pair_precision.h"
#include "cpu_matrix.h"
#include "cpu_parallel.h"
#include "pair_costs_shapes.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

cpu::PairProblem problem_of(const Tensor& x, const Tensor& y, const PairShapes& shapes, int64_t h) {
  return {cpu_matrix_at(x, h * x.stride(0)), cpu_matrix_at(y, h * y.stride(0)), shapes.N, shapes.M, shapes.d};
}

// The numbers of head h, whatever their strides.
std::vector<double> numbers_of(const Tensor& t, int64_t h) {
  std::vector<double> out(t.dim() == 2 ? t.size(1) : 1);
  const auto* from = static_cast<const double*>(t.const_data_ptr()) + h * t.stride(0);
  for (int64_t j = 0; j < int64_t(out.size()); ++j) out[j] = from[t.dim() == 2 ? j * t.stride(1) : 0];
  return out;
}

Tensor pair_logsumexp(const Tensor& x, const Tensor& y, const Tensor& weights, const Tensor& scale, bool squared) {
  const PairShapes shapes("pair_logsumexp", x, y);
  shapes.require_per_code(weights);
  shapes.require_per_head(scale);
  const Tensor out = torch::stable::new_empty(x, {shapes.heads, shapes.N}, ScalarType::Double);
  for (int64_t h = 0; h < shapes.heads; ++h) {
    const cpu::PairProblem problem = problem_of(x, y, shapes, h);
    auto* row = static_cast<double*>(out.mutable_data_ptr()) + h * shapes.N;
    const double scale_of_head = numbers_of(scale, h)[0];
    const bool narrow = !shapes.wide && cpu::float_suffices(problem, scale_of_head, squared);
    const auto run = narrow ? cpu::pair_logsumexp<float> : cpu::pair_logsumexp<double>;
    run(problem, numbers_of(weights, h).data(), scale_of_head, squared, row, parallel_for);
  }
  return out;
}

// Calls run(problem, sweep, head) for every head.
template <class F>
void for_sweeps(const char* op, const Tensor& x, const Tensor& y, const Tensor& u, const Tensor& v, const Tensor& scale,
                const Tensor& shift, const Tensor& log_rows, bool squared, double log_floor, F&& run) {
  const PairShapes shapes(op, x, y);
  shapes.require_per_code(u);
  shapes.require_per_row(v);
  shapes.require_per_head(scale);
  shapes.require_per_head(shift);
  const double rows = *static_cast<const double*>(log_rows.const_data_ptr());
  for (int64_t h = 0; h < shapes.heads; ++h) {
    const std::vector<double> u_of_head = numbers_of(u, h), v_of_head = numbers_of(v, h);
    const cpu::PairProblem problem = problem_of(x, y, shapes, h);
    const double scale_of_head = numbers_of(scale, h)[0];
    run(problem,
        cpu::PairSweep{u_of_head.data(), v_of_head.data(), scale_of_head, numbers_of(shift, h)[0], log_floor, rows,
                       squared},
        h, !shapes.wide && cpu::float_suffices(problem, scale_of_head, squared));
  }
}

std::tuple<Tensor, Tensor> pair_sweep(const Tensor& x, const Tensor& y, const Tensor& u, const Tensor& v,
                                      const Tensor& scale, const Tensor& shift, const Tensor& log_rows, bool squared,
                                      double log_floor) {
  const Tensor v_out = torch::stable::new_empty(x, {x.size(0), x.size(1)}, ScalarType::Double);
  const Tensor columns = torch::stable::new_empty(x, {y.size(0), y.size(1)}, ScalarType::Double);
  for_sweeps("pair_sweep", x, y, u, v, scale, shift, log_rows, squared, log_floor,
             [&](const cpu::PairProblem& problem, const cpu::PairSweep& sweep, int64_t h, bool narrow) {
               const auto run = narrow ? cpu::pair_sweep<float> : cpu::pair_sweep<double>;
               run(problem, sweep, static_cast<double*>(v_out.mutable_data_ptr()) + h * problem.N,
                   static_cast<double*>(columns.mutable_data_ptr()) + h * problem.M, parallel_for);
             });
  return {v_out, columns};
}

std::tuple<Tensor, Tensor> pair_last_sweep(const Tensor& x, const Tensor& y, const Tensor& u, const Tensor& v,
                                           const Tensor& scale, const Tensor& shift, const Tensor& log_rows,
                                           bool squared, double log_floor) {
  const Tensor v_out = torch::stable::new_empty(x, {x.size(0), x.size(1)}, ScalarType::Double);
  const Tensor indices = torch::stable::new_empty(x, {x.size(0), x.size(1)}, ScalarType::Long);
  for_sweeps("pair_last_sweep", x, y, u, v, scale, shift, log_rows, squared, log_floor,
             [&](const cpu::PairProblem& problem, const cpu::PairSweep& sweep, int64_t h, bool narrow) {
               const auto run = narrow ? cpu::pair_last_sweep<float> : cpu::pair_last_sweep<double>;
               run(problem, sweep, static_cast<double*>(v_out.mutable_data_ptr()) + h * problem.N,
                   static_cast<int64_t*>(indices.mutable_data_ptr()) + h * problem.N, parallel_for);
             });
  return {v_out, indices};
}

Tensor pair_sums(const Tensor& x, const Tensor& y, const Tensor& shift) {
  const PairShapes shapes("pair_sums", x, y);
  shapes.require_per_head(shift);
  const Tensor out = torch::stable::new_empty(x, {shapes.heads, 2}, ScalarType::Double);
  for (int64_t h = 0; h < shapes.heads; ++h) {
    const cpu::PairProblem problem = problem_of(x, y, shapes, h);
    const double shift_of_head = numbers_of(shift, h)[0];
    auto* sums = static_cast<double*>(out.mutable_data_ptr()) + 2 * h;
    const auto run = shapes.wide ? cpu::pair_sums<double> : cpu::pair_sums<float>;
    run(problem, shift_of_head, sums, parallel_for);
    // Distances that hardly differ, or that float cannot hold, once more.
    const double variance = (sums[1] - sums[0] * sums[0] / double(shapes.N * shapes.M)) / double(shapes.N * shapes.M);
    if (!shapes.wide && !(std::sqrt(variance) * 512 > shift_of_head && variance > 1e-25)) {
      cpu::pair_sums<double>(problem, shift_of_head, sums, parallel_for);
    }
  }
  return out;
}

Tensor pair_argmin(const Tensor& x, const Tensor& y, const Tensor& bias, const Tensor& noise, bool squared,
                   int64_t seed, int64_t first_row) {
  const PairShapes shapes("pair_argmin", x, y);
  shapes.require_per_code(bias);
  shapes.require_per_head(noise);
  const Tensor out = torch::stable::new_empty(x, {shapes.heads, shapes.N}, ScalarType::Long);
  for (int64_t h = 0; h < shapes.heads; ++h) {
    const cpu::PairNoise of_head{numbers_of(noise, h)[0], uint64_t(seed), first_row, uint32_t(h)};
    const cpu::PairProblem problem = problem_of(x, y, shapes, h);
    const bool narrow = !shapes.wide && cpu::float_holds(problem);
    const auto run = narrow ? cpu::pair_argmin<float> : cpu::pair_argmin<double>;
    run(problem, numbers_of(bias, h).data(), squared, of_head,
        static_cast<int64_t*>(out.mutable_data_ptr()) + h * shapes.N, parallel_for);
  }
  return out;
}

}  // namespace
}  // namespace vqdm

STABLE_TORCH_LIBRARY_FRAGMENT(vqdm, m) {
  m.def(vqdm::kPairLogsumexpSchema);
  m.def(vqdm::kPairSweepSchema);
  m.def(vqdm::kPairLastSweepSchema);
  m.def(vqdm::kPairSumsSchema);
  m.def(vqdm::kPairArgminSchema);
}

STABLE_TORCH_LIBRARY_IMPL(vqdm, CPU, m) {
  m.impl("pair_logsumexp", TORCH_BOX(&vqdm::pair_logsumexp));
  m.impl("pair_sweep", TORCH_BOX(&vqdm::pair_sweep));
  m.impl("pair_last_sweep", TORCH_BOX(&vqdm::pair_last_sweep));
  m.impl("pair_sums", TORCH_BOX(&vqdm::pair_sums));
  m.impl("pair_argmin", TORCH_BOX(&vqdm::pair_argmin));
}
