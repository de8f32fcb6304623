// Compiled with AVX2 and FMA; called only where cpu_features() finds them.

#include <immintrin.h>

#include "nearest_code_filter.h"

namespace vqdm::cpu {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  __m256 value;

  static Avx2 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Avx2 broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static Avx2 fma(Avx2 a, Avx2 b, Avx2 c) { return {_mm256_fmadd_ps(a.value, b.value, c.value)}; }
  static Avx2 mul(Avx2 a, Avx2 b) { return {_mm256_mul_ps(a.value, b.value)}; }
  static Avx2 add(Avx2 a, Avx2 b) { return {_mm256_add_ps(a.value, b.value)}; }
  static Avx2 min(Avx2 a, Avx2 b) { return {_mm256_min_ps(a.value, b.value)}; }
  static Avx2 max(Avx2 a, Avx2 b) { return {_mm256_max_ps(a.value, b.value)}; }
  static void keep_smaller(Avx2 a, Avx2 best, int32_t panel, int32_t* panels) {
    // Load, blend, store: a masked store is microcoded on some processors.
    auto* p = reinterpret_cast<__m256i*>(panels);
    const __m256i smaller = _mm256_castps_si256(_mm256_cmp_ps(a.value, best.value, _CMP_LT_OQ));
    _mm256_storeu_si256(p, _mm256_blendv_epi8(_mm256_loadu_si256(p), _mm256_set1_epi32(panel), smaller));
  }
  void store(float* p) const { _mm256_storeu_ps(p, value); }
};

}  // namespace

const NearestCodeFilter kNearestCodeAvx2 = {"avx2", 8, 2, scan_panels<Avx2, 2>, score_one_panel<Avx2, 2>};

}  // namespace vqdm::cpu
