// CUDA implementation of torch.ops.vqdm.code_sums. Formula and promises: csrc/cuda/code_sums.h.

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "../cuda/code_sums.h"
#include "code_sums_shapes.h"
#include "cuda_backend.h"
#include "cuda_operand.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor> code_sums(const Tensor& z, const Tensor& indices, int64_t num_codes) {
  const CodeSumsShapes shapes(z, indices, num_codes);
  // Rows and codes of all heads are numbered with 32 bits.
  const int64_t most = (int64_t(1) << 32) - 2;
  if (shapes.num_heads * shapes.N > most || shapes.K > most / std::max<int64_t>(shapes.num_heads, 1)) {
    throw std::invalid_argument("code_sums: expected fewer than 2^32 rows and codes over all heads");
  }
  const OnDeviceOf device(z);
  device.require("code_sums", indices);
  cuda::CodeSumsParams params{};
  params.z = operand_of(z, 2);
  params.indices.data = indices.const_data_ptr();
  params.indices.row_stride = indices.stride(-1);
  params.heads = merge_heads("code_sums", {shapes.counts_sizes.begin(), shapes.counts_sizes.end() - 1},
                             {{&z, 2, &params.z}, {&indices, 1, &params.indices}});
  params.N = shapes.N;
  params.K = shapes.K;
  params.d = shapes.d;
  params.wide = params.z.dtype == cuda::DType::kFloat64;

  const Tensor sums =
      torch::stable::new_empty(z, shapes.sums_sizes, params.wide ? ScalarType::Double : ScalarType::Float);
  const Tensor counts = torch::stable::new_empty(z, shapes.counts_sizes, ScalarType::Long);
  if (counts.numel() == 0) return {sums, counts};
  params.sums = sums.mutable_data_ptr();
  params.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  const Tensor workspace = workspace_beside(z, cuda::code_sums_workspace_bytes(params));
  check_launched("code_sums", cuda::code_sums(params, workspace.mutable_data_ptr(), device.stream()));
  return {sums, counts};
}

}  // namespace
}  // namespace vqdm

VQDM_REGISTER_CUDA("code_sums", vqdm::kCodeSumsSchema, &vqdm::code_sums)
