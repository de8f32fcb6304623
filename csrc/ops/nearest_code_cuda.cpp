// CUDA implementation of torch.ops.vqdm.nearest_code. Formula and promises: csrc/cuda/nearest_code.h.

#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../cuda/nearest_code.h"
#include "cuda_backend.h"
#include "nearest_code_shapes.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

cuda::DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return cuda::DType::kFloat64;
    case ScalarType::Float: return cuda::DType::kFloat32;
    case ScalarType::Half: return cuda::DType::kFloat16;
    case ScalarType::BFloat16: return cuda::DType::kBFloat16;
    default: throw std::invalid_argument("vqdm::nearest_code: a dtype that is not floating");
  }
}

// `own` is the number of dimensions after the heads.
cuda::Operand operand_of(const Tensor& t, int64_t own) {
  cuda::Operand operand{};
  operand.data = t.const_data_ptr();
  operand.dtype = dtype_of(t);
  operand.row_stride = t.stride(-own);
  operand.col_stride = own == 2 ? t.stride(-1) : 0;
  return operand;
}

// The stride of head dimension i of `num` of the whole problem; 0 where the tensor is broadcast.
int64_t head_stride(const Tensor& t, int64_t own, int64_t i, int64_t num) {
  const int64_t at = i - (num - (t.dim() - own));
  return at < 0 || t.size(at) == 1 ? 0 : t.stride(at);
}

// Head dimensions, those that step alike through all tensors taken together.
void set_heads(cuda::NearestCodeParams& params, const std::vector<int64_t>& sizes, const Tensor& z, const Tensor& e,
               const std::optional<Tensor>& bias) {
  const auto num = int64_t(sizes.size());
  int& dims = params.num_head_dims;
  for (int64_t i = 0; i < num; ++i) {
    if (sizes[i] == 1) continue;
    const int64_t strides[3] = {head_stride(z, 2, i, num), head_stride(e, 2, i, num),
                                bias ? head_stride(*bias, 1, i, num) : 0};
    cuda::Operand* const operands[3] = {&params.z, &params.e, &params.bias};
    bool joins = dims > 0;
    for (int o = 0; o < 3 && joins; ++o) joins = operands[o]->head_stride[dims - 1] == strides[o] * sizes[i];
    if (!joins && dims == cuda::kMaxHeadDims) {
      throw std::invalid_argument("nearest_code: expected at most " + std::to_string(cuda::kMaxHeadDims) +
                                  " leading dimensions that do not merge, got more");
    }
    if (!joins) params.head_size[dims++] = 1;
    params.head_size[dims - 1] *= sizes[i];
    for (int o = 0; o < 3; ++o) operands[o]->head_stride[dims - 1] = strides[o];
  }
}

// VQDM_CUDA_KERNEL=portable|tensor_core asks for one path (for tests); both give the same bits.
cuda::NearestCodePath path() {
  const char* asked = std::getenv("VQDM_CUDA_KERNEL");
  const std::string name = asked == nullptr ? "" : asked;
  if (name == "portable") return cuda::NearestCodePath::kPortable;
  if (name == "tensor_core") return cuda::NearestCodePath::kTensorCore;
  if (name.empty()) return cuda::NearestCodePath::kFastest;
  throw std::invalid_argument("nearest_code: expected VQDM_CUDA_KERNEL to be portable or tensor_core, got " + name);
}

std::tuple<Tensor, Tensor> nearest_code(const Tensor& z, const Tensor& e, std::optional<Tensor> bias) {
  const NearestCodeShapes shapes(z, e, bias);
  if (shapes.K >= (int64_t(1) << 31) - 128) throw std::invalid_argument("vqdm::nearest_code: 2^31 codes or more");
  const OnDeviceOf device(z);
  cuda::NearestCodeParams params{};
  params.z = operand_of(z, 2);
  params.e = operand_of(e, 2);
  if (bias) params.bias = operand_of(*bias, 1);
  set_heads(params, {shapes.output_sizes.begin(), shapes.output_sizes.end() - 1}, z, e, bias);
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
  const Tensor workspace = workspace_beside(z, cuda::nearest_code_workspace_bytes(params, path()));
  check_launched("nearest_code", cuda::nearest_code(params, path(), workspace.mutable_data_ptr(), device.stream()));
  return {dist2, indices};
}

}  // namespace
}  // namespace vqdm

VQDM_REGISTER_CUDA("nearest_code", vqdm::kNearestCodeSchema, &vqdm::nearest_code)
