// CUDA implementation of torch.ops.vqdm.nearest_code. Formula and promises: csrc/cuda/nearest_code.h.

#include <optional>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "../cuda/nearest_code.h"
#include "cuda_backend.h"
#include "cuda_kernel_choice.h"
#include "cuda_operand.h"
#include "nearest_code_shapes.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor> nearest_code(const Tensor& z, const Tensor& e, std::optional<Tensor> bias) {
  const NearestCodeShapes shapes(z, e, bias);
  if (shapes.K >= (int64_t(1) << 31) - 128) throw std::invalid_argument("vqdm::nearest_code: 2^31 codes or more");
  const OnDeviceOf device(z);
  device.require("nearest_code", e);
  if (bias) device.require("nearest_code", *bias);
  cuda::NearestCodeParams params{};
  params.z = operand_of(z, 2);
  params.e = operand_of(e, 2);
  if (bias) params.bias = operand_of(*bias, 1);
  std::vector<HeadOperand> with_heads = {{&z, 2, &params.z}, {&e, 2, &params.e}};
  if (bias) with_heads.push_back({&*bias, 1, &params.bias});
  params.heads = merge_heads("nearest_code", {shapes.output_sizes.begin(), shapes.output_sizes.end() - 1}, with_heads);
  params.N = shapes.N;
  params.K = shapes.K;
  params.d = shapes.d;
  params.wide = params.z.dtype == cuda::DType::kFloat64 || params.e.dtype == cuda::DType::kFloat64 ||
                (bias && params.bias.dtype == cuda::DType::kFloat64);

  const Tensor dist2 =
      torch::stable::new_empty(z, shapes.output_sizes, params.wide ? ScalarType::Double : ScalarType::Float);
  const Tensor indices = torch::stable::new_empty(z, shapes.output_sizes, ScalarType::Long);
  if (dist2.numel() == 0) return {dist2, indices};
  params.dist2 = dist2.mutable_data_ptr();
  params.indices = static_cast<int64_t*>(indices.mutable_data_ptr());
  // Both paths give the same bits.
  const cuda::NearestCodePath path =
      tensor_cores_allowed("nearest_code") ? cuda::NearestCodePath::kFastest : cuda::NearestCodePath::kPortable;
  const Tensor workspace = workspace_beside(z, cuda::nearest_code_workspace_bytes(params, path));
  check_launched("nearest_code", cuda::nearest_code(params, path, workspace.mutable_data_ptr(), device.stream()));
  return {dist2, indices};
}

}  // namespace
}  // namespace vqdm

VQDM_REGISTER_CUDA("nearest_code", vqdm::kNearestCodeSchema, &vqdm::nearest_code)
