// CUDA implementation of torch.ops.vqdm.sqrtm. Formula and promises: csrc/cuda/sqrtm.h.

#include <stdexcept>
#include <tuple>

#include "../cuda/jacobi.h"
#include "../cuda/sqrtm.h"
#include "cuda_backend.h"
#include "cuda_operand.h"
#include "sqrtm_shapes.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> sqrtm(const Tensor& a) {
  const SqrtmShapes shapes(a);
  if (shapes.d > cuda::kJacobiMaxSize) throw std::invalid_argument("vqdm::sqrtm: expected d <= 256");
  const OnDeviceOf device(a);
  cuda::SqrtmParams params{};
  params.a = operand_of(a, 2);
  params.heads = merge_heads("sqrtm", shapes.items, {{&a, 2, &params.a}});
  params.d = shapes.d;
  params.wide = shapes.wide;

  const Tensor root =
      torch::stable::new_empty(a, shapes.sizes(2), params.wide ? ScalarType::Double : ScalarType::Float);
  const Tensor roots = torch::stable::new_empty(a, shapes.sizes(1), ScalarType::Double);
  const Tensor vectors = torch::stable::new_empty(a, shapes.sizes(2), ScalarType::Double);
  if (root.numel() == 0) return {root, roots, vectors};
  params.root = root.mutable_data_ptr();
  params.roots = static_cast<double*>(roots.mutable_data_ptr());
  params.vectors = static_cast<double*>(vectors.mutable_data_ptr());
  const Tensor workspace = workspace_beside(a, cuda::sqrtm_workspace_bytes(params));
  check_launched("sqrtm", cuda::sqrtm(params, workspace.mutable_data_ptr(), device.stream()));
  return {root, roots, vectors};
}

}  // namespace
}  // namespace vqdm

VQDM_REGISTER_CUDA("sqrtm", vqdm::kSqrtmSchema, &vqdm::sqrtm)
