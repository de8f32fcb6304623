// torch.ops.vqdm.sqrtm: schema and CPU implementation. Formula and promises: csrc/cpu/sqrtm.h.

#include "../cpu/sqrtm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu_matrix.h"
#include "sqrtm_shapes.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> sqrtm(const Tensor& a) {
  const SqrtmShapes shapes(a);
  const Tensor root =
      torch::stable::new_empty(a, shapes.sizes(2), shapes.wide ? ScalarType::Double : ScalarType::Float);
  const Tensor roots = torch::stable::new_empty(a, shapes.sizes(1), ScalarType::Double);
  const Tensor vectors = torch::stable::new_empty(a, shapes.sizes(2), ScalarType::Double);
  const int64_t d = shapes.d, numbers = d * d;
  torch::stable::parallel_for(0, shapes.num_items(), 1, [&](int64_t begin, int64_t end) {
    std::vector<double> wide_root(numbers);
    for (int64_t item = begin; item < end; ++item) {
      cpu::sqrtm(cpu_matrix_at(a, shapes.a_offset[item]), shapes.d, wide_root.data(),
                 static_cast<double*>(roots.mutable_data_ptr()) + item * d,
                 static_cast<double*>(vectors.mutable_data_ptr()) + item * numbers);
      if (shapes.wide) {
        std::copy(wide_root.begin(), wide_root.end(), static_cast<double*>(root.mutable_data_ptr()) + item * numbers);
      } else {
        std::copy(wide_root.begin(), wide_root.end(), static_cast<float*>(root.mutable_data_ptr()) + item * numbers);
      }
    }
  });
  return {root, roots, vectors};
}

}  // namespace
}  // namespace vqdm

STABLE_TORCH_LIBRARY_FRAGMENT(vqdm, m) {
  m.def(vqdm::kSqrtmSchema);
}

STABLE_TORCH_LIBRARY_IMPL(vqdm, CPU, m) {
  m.impl("sqrtm", TORCH_BOX(&vqdm::sqrtm));
}
