// Reading an Operand on the device. Every supported type converts to float64 exactly.

#pragma once

#include "operand.h"
#include "simt.cuh"

namespace vqdm::cuda {

__device__ inline double load(const Operand& a, int64_t i) {
  switch (a.dtype) {
    case DType::kFloat64: return static_cast<const double*>(a.data)[i];
    case DType::kFloat32: return double(static_cast<const float*>(a.data)[i]);
    case DType::kFloat16: return double(simt::float_from_half(static_cast<const uint16_t*>(a.data)[i]));
    default: return double(simt::float_from_bits(uint32_t(static_cast<const uint16_t*>(a.data)[i]) << 16));
  }
}

// The same number, for operands that are not float64: without a detour through float64, which is slow to convert to.
__device__ inline float load_float(const Operand& a, int64_t i) {
  switch (a.dtype) {
    case DType::kFloat32: return static_cast<const float*>(a.data)[i];
    case DType::kFloat16: return simt::float_from_half(static_cast<const uint16_t*>(a.data)[i]);
    default: return simt::float_from_bits(uint32_t(static_cast<const uint16_t*>(a.data)[i]) << 16);
  }
}

// Where a head starts, in elements.
__device__ inline int64_t head_offset(const Heads& heads, const Operand& a, int64_t head) {
  int64_t offset = 0;
  for (int i = heads.num_dims - 1; i >= 0; --i) {
    offset += head % heads.size[i] * a.head_stride[i];
    head /= heads.size[i];
  }
  return offset;
}

}  // namespace vqdm::cuda
