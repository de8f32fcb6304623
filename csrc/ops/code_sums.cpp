// torch.ops.vqdm.code_sums: schema and CPU implementation. Formula and promises: csrc/cpu/code_sums.h.

#include "../cpu/code_sums.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <tuple>

#include "code_sums_shapes.h"
#include "cpu_matrix.h"
#include "cpu_parallel.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor> code_sums(const Tensor& z, const Tensor& indices, int64_t num_codes) {
  const CodeSumsShapes shapes(z, indices, num_codes);
  const bool wide = cpu_dtype_of(z) == cpu::DType::kFloat64;
  const Tensor sums = torch::stable::new_empty(z, shapes.sums_sizes, wide ? ScalarType::Double : ScalarType::Float);
  const Tensor counts = torch::stable::new_empty(z, shapes.counts_sizes, ScalarType::Long);
  if (counts.numel() == 0) return {sums, counts};

  cpu::CodeSumsParams params;
  for (int64_t h = 0; h < shapes.num_heads; ++h) {
    params.z.push_back(cpu_matrix_at(z, shapes.z_offset[h]));
    params.indices.push_back(static_cast<const int64_t*>(indices.const_data_ptr()) + shapes.indices_offset[h]);
  }
  params.index_stride = indices.stride(-1);
  params.N = shapes.N;
  params.K = shapes.K;
  params.d = shapes.d;
  params.threads = int(torch::stable::get_num_threads());
  auto* counted = static_cast<int64_t*>(counts.mutable_data_ptr());
  if (wide) {
    cpu::code_sums(params, static_cast<double*>(sums.mutable_data_ptr()), counted, parallel_for);
  } else {
    cpu::code_sums(params, static_cast<float*>(sums.mutable_data_ptr()), counted, parallel_for);
  }
  return {sums, counts};
}

}  // namespace
}  // namespace vqdm

STABLE_TORCH_LIBRARY_FRAGMENT(vqdm, m) {
  m.def(vqdm::kCodeSumsSchema);
}

STABLE_TORCH_LIBRARY_IMPL(vqdm, CPU, m) {
  m.impl("code_sums", TORCH_BOX(&vqdm::code_sums));
}
