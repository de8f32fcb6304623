#include "nearest_code_format.h"

#include <cstring>

namespace vqdm::cpu {

double WordCoder::encode(const double* x, double unit, double norm, int32_t* words, int64_t stride,
                         int32_t* scratch) const {
  double residual2;
  if (integers()) {
    auto* integers = reinterpret_cast<int16_t*>(scratch);
    if (d_ % 2 == 1) integers[d_] = 0;
    residual2 = round_to_int16(x, unit, d_, integers);
  } else {
    residual2 = round_to_float(x, unit, d_, reinterpret_cast<float*>(scratch));
  }
  const char* encoded = reinterpret_cast<const char*>(scratch);
  for (int64_t j = 0, count = steps(); j < count; ++j) std::memcpy(words + j * stride, encoded + 4 * j, 4);
  // The products x * unit are themselves rounded to 53 bits, and so is this arithmetic.
  return 1.001 * std::sqrt(residual2) / std::abs(unit) + 0x1p-50 * norm;
}

}  // namespace vqdm::cpu
