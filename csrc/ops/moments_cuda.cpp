// CUDA implementation of torch.ops.vqdm.moments. Formula and promises: csrc/cuda/moments.h.

#include <tuple>

#include "../cuda/moments.h"
#include "cuda_backend.h"
#include "cuda_operand.h"
#include "moments_shapes.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor> moments(const Tensor& x, int64_t divisor) {
  const MomentsShapes shapes(x);
  const OnDeviceOf device(x);
  cuda::MomentsParams params{};
  params.x = operand_of(x, 2);
  params.N = shapes.N;
  params.d = shapes.d;
  params.divisor = double(divisor);

  const Tensor mean = torch::stable::new_empty(x, {shapes.d}, ScalarType::Double);
  const Tensor cov = torch::stable::new_empty(x, {shapes.d, shapes.d}, ScalarType::Double);
  params.mean = static_cast<double*>(mean.mutable_data_ptr());
  params.cov = static_cast<double*>(cov.mutable_data_ptr());
  const Tensor workspace = workspace_beside(x, cuda::moments_workspace_bytes(params));
  check_launched("moments", cuda::moments(params, workspace.mutable_data_ptr(), device.stream()));
  return {mean, cov};
}

}  // namespace
}  // namespace vqdm

VQDM_REGISTER_CUDA("moments", vqdm::kMomentsSchema, &vqdm::moments)
