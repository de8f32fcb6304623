// Any processor: four-lane vectors that the compiler lowers to SSE2, NEON or scalar code.

#include <cstring>

#include "exact_distances.h"
#include "nearest_code_scan.h"

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
  static Vec zero() { return Vec{0.0, 0.0}; }
  static Vec sub(Vec a, Vec b) { return a - b; }
  static Vec mul(Vec a, Vec b) { return a * b; }
  static Vec add(Vec a, Vec b) { return a + b; }
  static void store(double* p, Vec a) { std::memcpy(p, &a, sizeof a); }
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
                                                exact_distances<PortableDoubles, float>,
                                                exact_distances<PortableDoubles, double>,
                                                nullptr};

}  // namespace vqdm::cpu
