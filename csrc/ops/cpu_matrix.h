// What the CPU kernels take of a tensor.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <stdexcept>

#include "../cpu/matrix.h"

namespace vqdm {

inline cpu::DType cpu_dtype_of(const torch::stable::Tensor& t) {
  using torch::headeronly::ScalarType;
  switch (t.scalar_type()) {
    case ScalarType::Double: return cpu::DType::kFloat64;
    case ScalarType::Float: return cpu::DType::kFloat32;
    case ScalarType::Half: return cpu::DType::kFloat16;
    case ScalarType::BFloat16: return cpu::DType::kBFloat16;
    default: throw std::invalid_argument("vqdm: a dtype that is not floating");
  }
}

inline cpu::Matrix cpu_matrix_at(const torch::stable::Tensor& t, int64_t offset, int64_t row_stride,
                                 int64_t col_stride) {
  const cpu::DType dtype = cpu_dtype_of(t);
  const int64_t element = dtype == cpu::DType::kFloat64 ? 8 : dtype == cpu::DType::kFloat32 ? 4 : 2;
  return {static_cast<const char*>(t.const_data_ptr()) + offset * element, dtype, row_stride, col_stride};
}

// The last two dimensions of t, from an offset in elements on.
inline cpu::Matrix cpu_matrix_at(const torch::stable::Tensor& t, int64_t offset) {
  return cpu_matrix_at(t, offset, t.stride(-2), t.stride(-1));
}

// The last dimension of t as rows of one number.
inline cpu::Matrix cpu_column_at(const torch::stable::Tensor& t, int64_t offset) {
  return cpu_matrix_at(t, offset, t.stride(-1), 0);
}

}  // namespace vqdm
