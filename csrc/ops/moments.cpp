// torch.ops.vqdm.moments: schema and CPU implementation. Formula and promises: csrc/cpu/moments.h.

#include "../cpu/moments.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <stdexcept>
#include <tuple>
#include <vector>

#include "../cpu/centred_product.h"
#include "cpu_matrix.h"
#include "cpu_parallel.h"
#include "moments_shapes.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor> moments(const Tensor& x, int64_t divisor) {
  const MomentsShapes shapes(x);
  const Tensor mean = torch::stable::new_empty(x, {shapes.d}, ScalarType::Double);
  const Tensor cov = torch::stable::new_empty(x, {shapes.d, shapes.d}, ScalarType::Double);
  const cpu::MomentsParams params{cpu_matrix_at(x, 0), shapes.N, shapes.d, double(divisor)};
  cpu::moments(params, static_cast<double*>(mean.mutable_data_ptr()), static_cast<double*>(cov.mutable_data_ptr()),
               parallel_for);
  return {mean, cov};
}

// grad_x = (x - mean)(G + G^T) + g, for the gradients g of sum_i x_i and G of sum_i (x_i - mean)(x_i - mean)^T.
template <class T>
void moments_backward_into(const Tensor& x, const MomentsShapes& shapes, const double* mean, const double* grad_sum,
                           const double* grad_scatter, T* out) {
  const int64_t d = shapes.d;
  std::vector<double> slope(d * d), shift(grad_sum, grad_sum + d), centre(d);
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j < d; ++j) slope[i * d + j] = grad_scatter[i * d + j] + grad_scatter[j * d + i];
    centre[i] = double(T(mean[i]));
  }
  // Of the mean, what T holds is taken off the rows; the rest, times the slope, is the same for all of them.
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j < d; ++j) shift[j] -= (mean[i] - centre[i]) * slope[i * d + j];
  }
  const cpu::CentredProduct<T> product(shapes.d, centre.data(), slope.data(), shift.data());
  const cpu::Matrix rows = cpu_matrix_at(x, 0);
  parallel_for(shapes.N, 1 + (1 << 18) / (d * d),
               [&](int64_t begin, int64_t end) { product.run(rows, begin, end, out); });
}

Tensor moments_backward(const Tensor& x, const Tensor& mean, const Tensor& grad_sum, const Tensor& grad_scatter) {
  const MomentsShapes shapes(x);
  const auto numbers = [&](const Tensor& t, int64_t count) {
    if (t.scalar_type() != ScalarType::Double || t.numel() != count) {
      throw std::invalid_argument("vqdm::moments_backward: expected float64 mean [d] and gradients [d] and [d, d]");
    }
    return torch::stable::contiguous(t);
  };
  const int64_t d = shapes.d;
  const Tensor m = numbers(mean, d), g = numbers(grad_sum, d), G = numbers(grad_scatter, d * d);
  const auto data = [](const Tensor& t) { return static_cast<const double*>(t.const_data_ptr()); };
  const Tensor out = torch::stable::new_empty(x, {shapes.N, d});
  if (shapes.N > 0 && shapes.wide) {
    moments_backward_into(x, shapes, data(m), data(g), data(G), static_cast<double*>(out.mutable_data_ptr()));
  } else if (shapes.N > 0) {
    moments_backward_into(x, shapes, data(m), data(g), data(G), static_cast<float*>(out.mutable_data_ptr()));
  }
  return out;
}

}  // namespace
}  // namespace vqdm

STABLE_TORCH_LIBRARY_FRAGMENT(vqdm, m) {
  m.def(vqdm::kMomentsSchema);
  m.def("moments_backward(Tensor x, Tensor mean, Tensor grad_sum, Tensor grad_scatter) -> Tensor grad_x");
}

STABLE_TORCH_LIBRARY_IMPL(vqdm, CPU, m) {
  m.impl("moments", TORCH_BOX(&vqdm::moments));
  m.impl("moments_backward", TORCH_BOX(&vqdm::moments_backward));
}
