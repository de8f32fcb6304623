#include "row_math.h"

#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VQDM_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VQDM_CLONES
#endif

namespace vqdm::cpu {

VQDM_CLONES bool all_finite(const double* x, int d) {
  // On the bits, as sums of floats may not be reordered and so not vectorised: an exponent of all ones is NaN or Inf.
  constexpr uint64_t kExponent = 0x7ff0000000000000u;
  uint64_t found = 0;
  for (int j = 0; j < d; ++j) {
    uint64_t bits;
    std::memcpy(&bits, &x[j], sizeof bits);
    found |= uint64_t((bits & kExponent) == kExponent);
  }
  return found == 0;
}

VQDM_CLONES double centre_row(const double* x, const double* centre, double scale, int d, double* out) {
  double sum[8] = {};
  int j = 0;
  for (; j + 8 <= d; j += 8) {
    for (int i = 0; i < 8; ++i) {
      const double value = (x[j + i] - centre[j + i]) * scale;
      out[j + i] = value;
      sum[i] += value * value;
    }
  }
  for (; j < d; ++j) {
    out[j] = (x[j] - centre[j]) * scale;
    sum[0] += out[j] * out[j];
  }
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

VQDM_CLONES void squared_differences(const double* z, const float* const* codes, int d, double* out) {
  for (int v = 0; v < 4; ++v) {
    const float* code = codes[v];
    double* squares = out + int64_t(v) * d;
    for (int j = 0; j < d; ++j) {
      const double difference = z[j] - double(code[j]);
      squares[j] = difference * difference;
    }
  }
}

VQDM_CLONES void widen(const float* x, int d, double* out) {
  for (int j = 0; j < d; ++j) out[j] = double(x[j]);
}

}  // namespace vqdm::cpu
