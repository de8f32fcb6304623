// torch.ops.vqdm.moments: schema and CPU implementation. Formula and promises: csrc/cpu/moments.h.

#include "../cpu/moments.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <functional>
#include <tuple>

#include "cpu_matrix.h"
#include "moments_shapes.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& f) {
  torch::stable::parallel_for(0, n, grain, f);
}

std::tuple<Tensor, Tensor> moments(const Tensor& x) {
  const MomentsShapes shapes(x);
  const Tensor mean = torch::stable::new_empty(x, {shapes.d}, ScalarType::Double);
  const Tensor scatter = torch::stable::new_empty(x, {shapes.d, shapes.d}, ScalarType::Double);
  const cpu::MomentsParams params{cpu_matrix_at(x, 0), shapes.N, shapes.d};
  cpu::moments(params, static_cast<double*>(mean.mutable_data_ptr()), static_cast<double*>(scatter.mutable_data_ptr()),
               parallel_for);
  return {mean, scatter};
}

}  // namespace
}  // namespace vqdm

STABLE_TORCH_LIBRARY_FRAGMENT(vqdm, m) {
  m.def(vqdm::kMomentsSchema);
}

STABLE_TORCH_LIBRARY_IMPL(vqdm, CPU, m) {
  m.impl("moments", TORCH_BOX(&vqdm::moments));
}
