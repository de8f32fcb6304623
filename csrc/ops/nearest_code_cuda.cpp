// CUDA implementation of torch.ops.vqdm.nearest_code. Formula and promises: csrc/cuda/nearest_code.h.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../cuda/nearest_code.h"
#include "nearest_code_shapes.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls f with a value of the C++ type that t holds.
template <typename F>
void with_type_of(const Tensor& t, F&& f) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return f(double{});
    case ScalarType::Float: return f(float{});
    case ScalarType::Half: return f(__half{});
    case ScalarType::BFloat16: return f(__nv_bfloat16{});
    default: throw std::invalid_argument("vqdm::nearest_code: a dtype that is not floating");
  }
}

std::tuple<Tensor, Tensor> nearest_code(const Tensor& z, const Tensor& e, std::optional<Tensor> bias) {
  const bool wide = z.scalar_type() == ScalarType::Double || e.scalar_type() == ScalarType::Double ||
                    (bias && bias->scalar_type() == ScalarType::Double);
  const torch::stable::accelerator::DeviceGuard guard(z.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(z.get_device_index(), &stream));

  std::optional<Tensor> bias64;
  if (bias) bias64 = torch::stable::to(*bias, ScalarType::Double);
  const NearestCodeShapes shapes(z, e, bias64);
  const Tensor dist2 = torch::stable::new_empty(z, shapes.output_sizes, wide ? ScalarType::Double : ScalarType::Float);
  const Tensor indices = torch::stable::new_empty(z, shapes.output_sizes, ScalarType::Long);

  with_type_of(z, [&](auto z_type) {
    with_type_of(e, [&](auto e_type) {
      using TZ = decltype(z_type);
      using TE = decltype(e_type);
      for (int64_t h = 0; h < shapes.num_heads; ++h) {
        const int64_t first = h * shapes.N;
        cuda::NearestCodeParams<TZ, TE> params{};
        params.z = static_cast<const TZ*>(z.const_data_ptr()) + shapes.z_offset[h];
        params.z_row_stride = z.stride(-2);
        params.z_col_stride = z.stride(-1);
        params.e = static_cast<const TE*>(e.const_data_ptr()) + shapes.e_offset[h];
        params.e_row_stride = e.stride(-2);
        params.e_col_stride = e.stride(-1);
        if (bias64) {
          params.bias = static_cast<const double*>(bias64->const_data_ptr()) + shapes.bias_offset[h];
          params.bias_stride = bias64->stride(-1);
        }
        params.dist2 = static_cast<char*>(dist2.mutable_data_ptr()) + first * (wide ? 8 : 4);
        params.indices = static_cast<int64_t*>(indices.mutable_data_ptr()) + first;
        params.N = shapes.N;
        params.K = shapes.K;
        params.d = shapes.d;
        params.wide = wide;
        const cudaError_t error = cuda::nearest_code(params, static_cast<cudaStream_t>(stream));
        if (error != cudaSuccess) {
          throw std::runtime_error(std::string("vqdm::nearest_code: ") + cudaGetErrorString(error));
        }
      }
    });
  });
  return {dist2, indices};
}

}  // namespace
}  // namespace vqdm

STABLE_TORCH_LIBRARY_IMPL(vqdm, CUDA, m) {
  m.impl("nearest_code", TORCH_BOX(&vqdm::nearest_code));
}
