// CUDA implementations of torch.ops.vqdm.pair_logsumexp, pair_sums and pair_argmin. Formulas and promises:
// csrc/cuda/pair_costs.h.

#include "../cuda/pair_costs.h"
#include "cuda_backend.h"
#include "cuda_kernel_choice.h"
#include "cuda_operand.h"
#include "pair_costs_shapes.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

cuda::Operand with_heads(const Tensor& t, int64_t own) {
  cuda::Operand operand = operand_of(t, own);
  operand.head_stride[0] = t.dim() == own ? 0 : t.stride(0);
  return operand;
}

cuda::PairParams params_of(const PairShapes& shapes, const Tensor& x, const Tensor& y, const Tensor& factor,
                           bool squared) {
  cuda::PairParams params{};
  params.x = with_heads(x, 2);
  params.y = with_heads(y, 2);
  params.factor = with_heads(factor, 1);
  params.heads = shapes.heads;
  params.N = shapes.N;
  params.M = shapes.M;
  params.d = shapes.d;
  params.squared = squared;
  params.wide = shapes.wide;
  return params;
}

Tensor pair_logsumexp(const Tensor& x, const Tensor& y, const Tensor& weights, const Tensor& scale, bool squared) {
  const char* op = "pair_logsumexp";
  const PairShapes shapes(op, x, y);
  shapes.require_per_code(weights);
  shapes.require_per_head(scale);
  const OnDeviceOf device(x);
  for (const Tensor* t : {&y, &weights, &scale}) device.require(op, *t);
  cuda::PairParams params = params_of(shapes, x, y, scale, squared);
  params.weights = with_heads(weights, 1);
  const Tensor out = torch::stable::new_empty(x, {shapes.heads, shapes.N}, ScalarType::Double);
  const bool tensor_cores = tensor_cores_allowed(op);
  const Tensor workspace =
      workspace_beside(x, cuda::pair_workspace_bytes(params, cuda::PairOp::kLogsumexp, tensor_cores));
  check_launched(op, cuda::pair_logsumexp(params, tensor_cores, static_cast<double*>(out.mutable_data_ptr()),
                                          workspace.mutable_data_ptr(), device.stream()));
  return out;
}

Tensor pair_sums(const Tensor& x, const Tensor& y, const Tensor& shift) {
  const char* op = "pair_sums";
  const PairShapes shapes(op, x, y);
  shapes.require_per_head(shift);
  const OnDeviceOf device(x);
  for (const Tensor* t : {&y, &shift}) device.require(op, *t);
  const cuda::PairParams params = params_of(shapes, x, y, shift, false);
  const Tensor out = torch::stable::new_empty(x, {shapes.heads, 2}, ScalarType::Double);
  const bool tensor_cores = tensor_cores_allowed(op);
  const Tensor workspace = workspace_beside(x, cuda::pair_workspace_bytes(params, cuda::PairOp::kSums, tensor_cores));
  check_launched(op, cuda::pair_sums(params, tensor_cores, static_cast<double*>(out.mutable_data_ptr()),
                                     workspace.mutable_data_ptr(), device.stream()));
  return out;
}

Tensor pair_argmin(const Tensor& x, const Tensor& y, const Tensor& bias, const Tensor& noise, bool squared,
                   int64_t seed, int64_t first_row) {
  const char* op = "pair_argmin";
  const PairShapes shapes(op, x, y);
  shapes.require_per_code(bias);
  shapes.require_per_head(noise);
  const OnDeviceOf device(x);
  for (const Tensor* t : {&y, &bias, &noise}) device.require(op, *t);
  cuda::PairParams params = params_of(shapes, x, y, noise, squared);
  params.weights = with_heads(bias, 1);
  params.seed = uint64_t(seed);
  params.first_row = first_row;
  const Tensor out = torch::stable::new_empty(x, {shapes.heads, shapes.N}, ScalarType::Long);
  const bool tensor_cores = tensor_cores_allowed(op);
  const Tensor workspace = workspace_beside(x, cuda::pair_workspace_bytes(params, cuda::PairOp::kArgmin, tensor_cores));
  check_launched(op, cuda::pair_argmin(params, tensor_cores, static_cast<int64_t*>(out.mutable_data_ptr()),
                                       workspace.mutable_data_ptr(), device.stream()));
  return out;
}

}  // namespace
}  // namespace vqdm

VQDM_REGISTER_CUDA("pair_logsumexp", vqdm::kPairLogsumexpSchema, &vqdm::pair_logsumexp)
VQDM_REGISTER_CUDA("pair_sums", vqdm::kPairSumsSchema, &vqdm::pair_sums)
VQDM_REGISTER_CUDA("pair_argmin", vqdm::kPairArgminSchema, &vqdm::pair_argmin)
