// torch.ops.vqdm.gaussian_w2: schema and CPU implementation. Formula and promises: csrc/cpu/gaussian_w2.h.

#include "../cpu/gaussian_w2.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <tuple>
#include <vector>

#include "cpu_matrix.h"
#include "gaussian_w2_shapes.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

double squared_distance(const cpu::Matrix& mean1, const cpu::Matrix& mean2, int d) {  // of columns
  double sum = 0;
  for (int j = 0; j < d; ++j) {
    double x, y;
    mean1.load(j, 1, &x);
    mean2.load(j, 1, &y);
    sum += (x - y) * (x - y);
  }
  return sum;
}

std::tuple<Tensor, Tensor, Tensor> gaussian_w2(const Tensor& mean1, const Tensor& cov1, const Tensor& mean2,
                                               const Tensor& cov2, bool gradients) {
  const GaussianW2Shapes shapes(mean1, cov1, mean2, cov2);
  const Tensor w2 = torch::stable::new_empty(mean1, shapes.items, shapes.wide ? ScalarType::Double : ScalarType::Float);
  const std::vector<int64_t> sizes = shapes.gradient_sizes(gradients);
  const Tensor grad1 = torch::stable::new_empty(mean1, sizes, ScalarType::Double);
  const Tensor grad2 = torch::stable::new_empty(mean1, sizes, ScalarType::Double);
  torch::stable::parallel_for(0, shapes.num_items(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t at = item * shapes.d * shapes.d;
      const double value =
          squared_distance(cpu_column_at(mean1, shapes.mean1_offset[item]),
                           cpu_column_at(mean2, shapes.mean2_offset[item]), shapes.d) +
          cpu::squared_bures(cpu_matrix_at(cov1, shapes.cov1_offset[item]),
                             cpu_matrix_at(cov2, shapes.cov2_offset[item]), shapes.d,
                             gradients ? static_cast<double*>(grad1.mutable_data_ptr()) + at : nullptr,
                             gradients ? static_cast<double*>(grad2.mutable_data_ptr()) + at : nullptr);
      if (shapes.wide) {
        static_cast<double*>(w2.mutable_data_ptr())[item] = value;
      } else {
        static_cast<float*>(w2.mutable_data_ptr())[item] = float(value);
      }
    }
  });
  return {w2, grad1, grad2};
}

}  // namespace
}  // namespace vqdm

STABLE_TORCH_LIBRARY_FRAGMENT(vqdm, m) {
  m.def(vqdm::kGaussianW2Schema);
}

STABLE_TORCH_LIBRARY_IMPL(vqdm, CPU, m) {
  m.impl("gaussian_w2", TORCH_BOX(&vqdm::gaussian_w2));
}
