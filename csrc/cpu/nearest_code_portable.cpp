// Any processor: four-lane vectors that the compiler lowers to SSE2, NEON or scalar code.

#include <cmath>
#include <cstring>

#include "nearest_code_scan.h"
#include "row_math_loops.h"

namespace vqdm::cpu {
namespace {

struct Portable {
  static constexpr int kLanes = 4;
  using Vec = float __attribute__((vector_size(16)));
  using Ints = int32_t __attribute__((vector_size(16)));
  using Words = Vec;
  using Sum = Vec;

  template <typename T>
  static T read(const void* p) {
    T out;
    std::memcpy(&out, p, sizeof out);
    return out;
  }
  static Vec load(const float* p) { return read<Vec>(p); }
  static void store(float* p, Vec a) { std::memcpy(p, &a, sizeof a); }
  static Vec min(Vec a, Vec b) { return a < b ? a : b; }
  static Vec max(Vec a, Vec b) { return a > b ? a : b; }
  static float smallest(Vec a) { return std::fmin(std::fmin(a[0], a[1]), std::fmin(a[2], a[3])); }
  static void keep_smaller(Vec a, Vec best, int32_t panel, int32_t* panels) {
    const Ints kept = a < best ? Ints{panel, panel, panel, panel} : read<Ints>(panels);
    std::memcpy(panels, &kept, sizeof kept);
  }
  static uint16_t not_above(Vec a, float b) {
    return uint16_t((a[0] <= b) | (a[1] <= b) << 1 | (a[2] <= b) << 2 | (a[3] <= b) << 3);
  }
  static Words load_words(const int32_t* p) { return read<Vec>(p); }
  static Words broadcast(const int32_t* p) {
    const float x = read<float>(p);
    return Vec{x, x, x, x};
  }
  static Sum start(Words x, Words code) { return x * code; }
  static Sum add(Words x, Words code, Sum sum) { return x * code + sum; }
  static Vec finish(Sum sum, const float*, Vec bias) { return sum + bias; }
};

struct PortableDoubles {
  static constexpr int kLanes = 2;
  using Vec = double __attribute__((vector_size(16)));
  template <typename T>
  static Vec load(const T* p) {
    return Vec{double(p[0]), double(p[1])};
  }
  static Vec broadcast(double x) { return Vec{x, x}; }
  static Vec sub(Vec a, Vec b) { return a - b; }
  static Vec mul(Vec a, Vec b) { return a * b; }
  static Vec add(Vec a, Vec b) { return a + b; }
  static Vec max(Vec a, Vec b) { return a > b ? a : b; }
  static double sum(Vec a) { return a[0] + a[1]; }
  static double largest(Vec a) { return a[0] > a[1] ? a[0] : a[1]; }
  static Vec abs(Vec a) { return Vec{std::fabs(a[0]), std::fabs(a[1])}; }
  static void store(double* p, Vec a) { std::memcpy(p, &a, sizeof a); }
  static Vec store_rounded(float* p, Vec a) {
    p[0] = float(a[0]), p[1] = float(a[1]);
    return load(p);
  }
  static Vec store_rounded(int16_t* p, Vec a) {
    const Vec whole = (a + 0x1.8p52) - 0x1.8p52;  // adding it leaves no room for a fraction
    p[0] = int16_t(whole[0]), p[1] = int16_t(whole[1]);
    return whole;
  }
  static void transpose(Vec (&rows)[2]) {
    const Vec first = {rows[0][0], rows[1][0]}, second = {rows[0][1], rows[1][1]};
    rows[0] = first, rows[1] = second;
  }
};

}  // namespace

const NearestCodeFilter kNearestCodePortable = {"portable",
                                                WordFormat::kFloat32,
                                                4,
                                                2,
                                                scan_panels<Portable, 2>,
                                                find_in_panels<Portable, 2>,
                                                select_lanes<Portable>,
                                                kRowMath<PortableDoubles>,
                                                nullptr};

}  // namespace vqdm::cpu
