#include "row_math.h"

#include <cmath>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VQDM_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VQDM_CLONES
#endif

namespace vqdm::cpu {
namespace {

constexpr int kLanes = 8;  // independent sums: those of floats may not be reordered, and so not vectorised otherwise

[[gnu::always_inline]] inline double total(const double* sum) {
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

template <typename T>
[[gnu::always_inline]] inline RowSize centre(const T* x, const double* centre, double scale, int d, double* out) {
  double sum[kLanes] = {}, largest[kLanes] = {};
  int j = 0;
  for (; j + kLanes <= d; j += kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      const double value = (double(x[j + i]) - centre[j + i]) * scale, size = std::fabs(value);
      out[j + i] = value;
      sum[i] += value * value;
      largest[i] = size > largest[i] ? size : largest[i];
    }
  }
  for (; j < d; ++j) {
    const double value = (double(x[j]) - centre[j]) * scale, size = std::fabs(value);
    out[j] = value;
    sum[0] += value * value;
    largest[0] = size > largest[0] ? size : largest[0];
  }
  for (int i = 1; i < kLanes; ++i) largest[0] = largest[i] > largest[0] ? largest[i] : largest[0];
  return {total(sum), largest[0]};
}

}  // namespace

VQDM_CLONES bool all_finite(const double* x, int d) {
  // On the bits, which vectorise: an exponent of all ones is NaN or Inf.
  constexpr uint64_t kExponent = 0x7ff0000000000000u;
  uint64_t found = 0;
  for (int j = 0; j < d; ++j) {
    uint64_t bits;
    std::memcpy(&bits, &x[j], sizeof bits);
    found |= uint64_t((bits & kExponent) == kExponent);
  }
  return found == 0;
}

VQDM_CLONES void widen(const float* x, int d, double* out) {
  for (int j = 0; j < d; ++j) out[j] = double(x[j]);
}

VQDM_CLONES void accumulate(const double* x, int d, double* sum) {
  for (int j = 0; j < d; ++j) sum[j] += x[j];
}

VQDM_CLONES RowSize centre_row(const double* x, const double* c, double scale, int d, double* out) {
  return centre(x, c, scale, d, out);
}

VQDM_CLONES RowSize centre_row(const float* x, const double* c, double scale, int d, double* out) {
  return centre(x, c, scale, d, out);
}

VQDM_CLONES double round_to_float(const double* x, double unit, int d, float* out) {
  double sum[kLanes] = {};
  int j = 0;
  for (; j + kLanes <= d; j += kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      const double value = x[j + i] * unit;
      out[j + i] = float(value);
      const double residual = value - double(out[j + i]);
      sum[i] += residual * residual;
    }
  }
  for (; j < d; ++j) {
    const double value = x[j] * unit;
    out[j] = float(value);
    sum[0] += (value - double(out[j])) * (value - double(out[j]));
  }
  return total(sum);
}

VQDM_CLONES double round_to_int16(const double* x, double unit, int d, int16_t* out) {
  constexpr double kRound = 0x1.8p52;  // adding it leaves no room for a fraction
  double sum[kLanes] = {};
  int j = 0;
  for (; j + kLanes <= d; j += kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      const double value = x[j + i] * unit, whole = (value + kRound) - kRound;
      out[j + i] = int16_t(int32_t(whole));
      sum[i] += (value - whole) * (value - whole);
    }
  }
  for (; j < d; ++j) {
    const double value = x[j] * unit, whole = (value + kRound) - kRound;
    out[j] = int16_t(int32_t(whole));
    sum[0] += (value - whole) * (value - whole);
  }
  return total(sum);
}

}  // namespace vqdm::cpu
