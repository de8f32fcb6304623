// Any processor: four-lane vectors that the compiler lowers to SSE2, NEON or scalar code.

#include <cstring>

#include "nearest_code_filter.h"

namespace vqdm::cpu {
namespace {

struct Portable {
  static constexpr int kLanes = 4;
  using Floats = float __attribute__((vector_size(16)));
  using Ints = int32_t __attribute__((vector_size(16)));
  Floats value;

  static Portable load(const float* p) {
    Portable out;
    std::memcpy(&out.value, p, sizeof out.value);
    return out;
  }
  static Portable broadcast(float x) { return {Floats{x, x, x, x}}; }
  static Portable fma(Portable a, Portable b, Portable c) { return {a.value * b.value + c.value}; }
  static Portable mul(Portable a, Portable b) { return {a.value * b.value}; }
  static Portable add(Portable a, Portable b) { return {a.value + b.value}; }
  static Portable min(Portable a, Portable b) { return {a.value < b.value ? a.value : b.value}; }
  static Portable max(Portable a, Portable b) { return {a.value > b.value ? a.value : b.value}; }
  static void keep_smaller(Portable a, Portable best, int32_t panel, int32_t* panels) {
    Ints kept;
    std::memcpy(&kept, panels, sizeof kept);
    kept = a.value < best.value ? Ints{panel, panel, panel, panel} : kept;
    std::memcpy(panels, &kept, sizeof kept);
  }
  void store(float* p) const { std::memcpy(p, &value, sizeof value); }
};

}  // namespace

const NearestCodeFilter kNearestCodePortable = {"portable", 4, 2, scan_panels<Portable, 2>,
                                                score_one_panel<Portable, 2>};

}  // namespace vqdm::cpu
