// Tensors as the CUDA kernels take them: strided operands, with the leading dimensions of one call merged.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/operand.h"

namespace vqdm {

// `own` is the number of dimensions after the heads: 2 for [..., rows, columns], 1 for [..., rows].
inline cuda::Operand operand_of(const torch::stable::Tensor& t, int64_t own) {
  using torch::headeronly::ScalarType;
  cuda::Operand operand{};
  operand.data = t.const_data_ptr();
  switch (t.scalar_type()) {
    case ScalarType::Double: operand.dtype = cuda::DType::kFloat64; break;
    case ScalarType::Float: operand.dtype = cuda::DType::kFloat32; break;
    case ScalarType::Half: operand.dtype = cuda::DType::kFloat16; break;
    case ScalarType::BFloat16: operand.dtype = cuda::DType::kBFloat16; break;
    default: throw std::invalid_argument("vqdm: a dtype that is not floating");
  }
  operand.row_stride = t.stride(-own);
  operand.col_stride = own == 2 ? t.stride(-1) : 0;
  return operand;
}

struct HeadOperand {
  const torch::stable::Tensor* tensor;
  int64_t own;
  cuda::Operand* operand;  // out: its head strides

  // Of head dimension i of num; 0 where the tensor is broadcast.
  int64_t stride(int64_t i, int64_t num) const {
    const int64_t at = i - (num - (tensor->dim() - own));
    return at < 0 || tensor->size(at) == 1 ? 0 : tensor->stride(at);
  }
};

// Dimensions that step alike through all operands are taken for one.
inline cuda::Heads merge_heads(const std::string& op, const std::vector<int64_t>& sizes,
                               const std::vector<HeadOperand>& operands) {
  cuda::Heads heads{};
  int& dims = heads.num_dims;
  const auto num = int64_t(sizes.size());
  for (int64_t i = 0; i < num; ++i) {
    if (sizes[i] == 1) continue;
    bool joins = dims > 0;
    for (const HeadOperand& o : operands) {
      joins = joins && o.operand->head_stride[dims - 1] == o.stride(i, num) * sizes[i];
    }
    if (!joins && dims == cuda::kMaxHeadDims) {
      throw std::invalid_argument(op + ": expected at most " + std::to_string(cuda::kMaxHeadDims) +
                                  " leading dimensions that cannot be merged, got more");
    }
    if (!joins) heads.size[dims++] = 1;
    heads.size[dims - 1] *= sizes[i];
    for (const HeadOperand& o : operands) o.operand->head_stride[dims - 1] = o.stride(i, num);
  }
  return heads;
}

}  // namespace vqdm
