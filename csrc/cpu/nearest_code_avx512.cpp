// Compiled with AVX-512 F/VL/DQ/BW; called only where cpu_features() finds them.

#include <immintrin.h>

#include "nearest_code_filter.h"

namespace vqdm::cpu {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  __m512 value;

  static Avx512 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Avx512 broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static Avx512 fma(Avx512 a, Avx512 b, Avx512 c) { return {_mm512_fmadd_ps(a.value, b.value, c.value)}; }
  static Avx512 mul(Avx512 a, Avx512 b) { return {_mm512_mul_ps(a.value, b.value)}; }
  static Avx512 add(Avx512 a, Avx512 b) { return {_mm512_add_ps(a.value, b.value)}; }
  static Avx512 min(Avx512 a, Avx512 b) { return {_mm512_min_ps(a.value, b.value)}; }
  static Avx512 max(Avx512 a, Avx512 b) { return {_mm512_max_ps(a.value, b.value)}; }
  static void keep_smaller(Avx512 a, Avx512 best, int32_t panel, int32_t* panels) {
    _mm512_mask_storeu_epi32(panels, _mm512_cmp_ps_mask(a.value, best.value, _CMP_LT_OQ), _mm512_set1_epi32(panel));
  }
  void store(float* p) const { _mm512_storeu_ps(p, value); }
};

}  // namespace

const NearestCodeFilter kNearestCodeAvx512 = {"avx512", 16, 4, scan_panels<Avx512, 4>, score_one_panel<Avx512, 4>};

}  // namespace vqdm::cpu
