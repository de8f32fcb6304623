// Half precision and the tensor cores' fragment product.
//
// Lane l of a warp has g = l / 4 and t = l % 4. Each 32-bit register holds two numbers, the lower one first:
//   a: (row g, columns 2t, 2t+1), (g + 8, 2t, 2t+1), (g, 2t+8, 2t+9), (g + 8, 2t+8, 2t+9)
//   b: (rows 2t, 2t+1; column g), (rows 2t+8, 2t+9; column g)
//   acc: (row g, columns 2t, 2t+1), (row g + 8, columns 2t, 2t+1)
//
// How tensor cores round is not documented. Measurements (Fasi et al. 2021; Khattak and Mikaitis 2025) find products
// exact, and addends cut to the 24 bits below the largest of them, with some guard bits, before one sum that is cut
// again, 16, 8 or 4 products at a time. Here there are no guard bits, and 16 products at a time.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "device.h"

namespace vqdm::simt {
namespace {

constexpr int kRows = 16, kColumns = 8, kDepth = 16;

struct Operand {  // of one lane
  uint32_t a[4], b[2];
  float acc[4];
};
static_assert(sizeof(Operand) <= kMaxOperandBytes);

float float_from_bfloat16(uint16_t bits) {
  return float_from_bits(uint32_t(bits) << 16);
}

// The power of two at or below x > 0, as std::ilogb would give its exponent.
double power_below(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits &= 0x7ff0000000000000u;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Toward zero, to a multiple of unit, a power of two; |x| < 2^63 unit.
double cut(double x, double unit, double per_unit) {
  return double(int64_t(x * per_unit)) * unit;
}

float sum_as_badly_as_allowed(float acc, const float* a, const float* b) {
  double addends[kDepth + 1];
  double largest = 0;
  for (int k = 0; k <= kDepth; ++k) {
    addends[k] = k < kDepth ? double(a[k]) * double(b[k]) : double(acc);
    largest = std::max(largest, std::abs(addends[k]));
  }
  double sum = 0;  // exact once they are cut: 17 addends of 24 bits
  if (largest == 0 || !std::isfinite(largest)) {
    for (double addend : addends) sum += addend;
    return float(sum);
  }
  const double unit = power_below(largest) * 0x1p-23, per_unit = 1 / unit;
  for (double addend : addends) sum += cut(addend, unit, per_unit);
  if (sum == 0) return 0.0f;
  const double last_place = power_below(std::abs(sum)) * 0x1p-23;
  return float(cut(sum, last_place, 1 / last_place));
}

template <float (*kConvert)(uint16_t)>
void multiply(WarpOperands& operands) {
  float a[kRows][kDepth], b[kColumns][kDepth];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int g = lane / 4, t = lane % 4;
    Operand in;
    std::memcpy(&in, operands.in[lane], sizeof in);
    for (int half = 0; half < 2; ++half) {
      const auto number = [&](uint32_t word) { return kConvert(uint16_t(word >> (16 * half))); };
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = number(in.a[i]);
      for (int i = 0; i < 2; ++i) b[g][2 * t + i * 8 + half] = number(in.b[i]);
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int g = lane / 4, t = lane % 4;
    Operand own;
    std::memcpy(&own, operands.in[lane], sizeof own);
    for (int i = 0; i < 4; ++i) own.acc[i] = sum_as_badly_as_allowed(own.acc[i], a[g + i / 2 * 8], b[2 * t + i % 2]);
    std::memcpy(operands.out[lane], own.acc, sizeof own.acc);
  }
}

}  // namespace

float float_from_half(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, fraction = bits & 0x3ffu;
  if (exponent == 31) return float_from_bits(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return float_from_bits(sign | (exponent + 112u) << 23 | fraction << 13);
  const float magnitude = float(fraction) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

uint16_t half_from_float(float x) {
  const uint16_t sign = uint16_t(bits_from_float(x) >> 16 & 0x8000u);
  const double magnitude = std::abs(double(x));
  if (std::isnan(x)) return uint16_t(sign | 0x7e00u);
  if (magnitude >= 65520.0) return uint16_t(sign | 0x7c00u);
  if (magnitude < 0x1p-25) return sign;
  const int exponent = std::max(std::ilogb(magnitude), -14);
  // In units of the last place; nearbyint rounds ties to even. A carry into the exponent comes out right by itself.
  const auto units = uint16_t(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return uint16_t(sign | (units + uint16_t(exponent + 14) * 1024u));
}

void mma_f16(float (&acc)[4], const uint4& a, uint32_t b0, uint32_t b1, const Site& site) {
  const Operand in{{a.x, a.y, a.z, a.w}, {b0, b1}, {acc[0], acc[1], acc[2], acc[3]}};
  warp_collective(&in, sizeof in, acc, sizeof acc, multiply<float_from_half>, site);
}

void mma_bf16(float (&acc)[4], const uint4& a, uint32_t b0, uint32_t b1, const Site& site) {
  const Operand in{{a.x, a.y, a.z, a.w}, {b0, b1}, {acc[0], acc[1], acc[2], acc[3]}};
  warp_collective(&in, sizeof in, acc, sizeof acc, multiply<float_from_bfloat16>, site);
}

}  // namespace vqdm::simt
