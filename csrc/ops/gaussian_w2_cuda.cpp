// CUDA implementation of torch.ops.vqdm.gaussian_w2. Formula and promises: csrc/cuda/gaussian_w2.h.

#include <stdexcept>
#include <tuple>

#include "../cuda/gaussian_w2.h"
#include "../cuda/jacobi.h"
#include "cuda_backend.h"
#include "cuda_operand.h"
#include "gaussian_w2_shapes.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> gaussian_w2(const Tensor& mean1, const Tensor& cov1, const Tensor& mean2,
                                               const Tensor& cov2, bool gradients) {
  const GaussianW2Shapes shapes(mean1, cov1, mean2, cov2);
  if (shapes.d > cuda::kJacobiMaxSize) throw std::invalid_argument("vqdm::gaussian_w2: expected d <= 256");
  const OnDeviceOf device(mean1);
  for (const Tensor* t : {&cov1, &mean2, &cov2}) device.require("gaussian_w2", *t);
  cuda::GaussianW2Params params{};
  params.mean1 = operand_of(mean1, 1);
  params.mean2 = operand_of(mean2, 1);
  params.cov[0] = operand_of(cov1, 2);
  params.cov[1] = operand_of(cov2, 2);
  params.heads = merge_heads(
      "gaussian_w2", shapes.items,
      {{&mean1, 1, &params.mean1}, {&cov1, 2, &params.cov[0]}, {&mean2, 1, &params.mean2}, {&cov2, 2, &params.cov[1]}});
  params.d = shapes.d;
  params.wide = shapes.wide;

  const Tensor w2 = torch::stable::new_empty(mean1, shapes.items, params.wide ? ScalarType::Double : ScalarType::Float);
  const Tensor grad1 = torch::stable::new_empty(mean1, shapes.gradient_sizes(gradients), ScalarType::Double);
  const Tensor grad2 = torch::stable::new_empty(mean1, shapes.gradient_sizes(gradients), ScalarType::Double);
  if (w2.numel() == 0) return {w2, grad1, grad2};
  params.w2 = w2.mutable_data_ptr();
  if (gradients) {
    params.grad[0] = static_cast<double*>(grad1.mutable_data_ptr());
    params.grad[1] = static_cast<double*>(grad2.mutable_data_ptr());
  }
  const Tensor workspace = workspace_beside(mean1, cuda::gaussian_w2_workspace_bytes(params));
  check_launched("gaussian_w2", cuda::gaussian_w2(params, workspace.mutable_data_ptr(), device.stream()));
  return {w2, grad1, grad2};
}

}  // namespace
}  // namespace vqdm

VQDM_REGISTER_CUDA("gaussian_w2", vqdm::kGaussianW2Schema, &vqdm::gaussian_w2)
