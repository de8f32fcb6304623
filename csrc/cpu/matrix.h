// A strided [rows, cols] matrix of any floating type, read as float64 (every supported type converts exactly).

#pragma once

#include <cstdint>
#include <cstring>

namespace vqdm::cpu {

enum class DType { kFloat64, kFloat32, kFloat16, kBFloat16 };

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct Half {
  uint16_t bits;
  operator double() const {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, fraction = bits & 0x3ffu;
    if (exponent == 31) return float_from_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0) return float_from_bits(sign | (exponent + 112u) << 23 | fraction << 13);
    const double magnitude = double(fraction) * 0x1p-24;  // zero and subnormal numbers
    return sign ? -magnitude : magnitude;
  }
};

struct BFloat16 {
  uint16_t bits;
  operator double() const { return float_from_bits(uint32_t(bits) << 16); }
};

struct Matrix {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t row_stride = 0;  // in elements
  int64_t col_stride = 0;

  template <typename T>
  const T* row(int64_t i) const {
    return static_cast<const T*>(data) + i * row_stride;
  }

  // Calls f with the typed pointer to row i.
  template <typename F>
  auto with_row(int64_t i, F&& f) const {
    switch (dtype) {
      case DType::kFloat64: return f(row<double>(i));
      case DType::kFloat16: return f(row<Half>(i));
      case DType::kBFloat16: return f(row<BFloat16>(i));
      default: return f(row<float>(i));
    }
  }

  void load(int64_t i, int cols, double* out) const {
    with_row(i, [&](const auto* x) {
      for (int j = 0; j < cols; ++j) out[j] = double(x[j * col_stride]);
    });
  }
};

}  // namespace vqdm::cpu
