// Compiled with AVX2 and FMA; called only where cpu_features() finds them.

#include <immintrin.h>

#include "nearest_code_scan.h"
#include "row_math_loops.h"

namespace vqdm::cpu {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  using Vec = __m256;
  using Words = __m256;
  using Sum = __m256;

  static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
  static Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
  static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  static float smallest(Vec a) {
    const __m128 four = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
  }
  static void keep_smaller(Vec a, Vec best, int32_t panel, int32_t* panels) {
    // Load, blend, store: a masked store is microcoded on some processors.
    auto* p = reinterpret_cast<__m256i*>(panels);
    const __m256i smaller = _mm256_castps_si256(_mm256_cmp_ps(a, best, _CMP_LT_OQ));
    _mm256_storeu_si256(p, _mm256_blendv_epi8(_mm256_loadu_si256(p), _mm256_set1_epi32(panel), smaller));
  }
  static uint16_t not_above(Vec a, float b) {
    return uint16_t(_mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_set1_ps(b), _CMP_LE_OQ)));
  }
  static Words load_words(const int32_t* p) {
    return _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Words broadcast(const int32_t* p) { return _mm256_castsi256_ps(_mm256_set1_epi32(*p)); }
  static Sum start(Words x, Words code) { return _mm256_mul_ps(x, code); }
  static Sum add(Words x, Words code, Sum sum) { return _mm256_fmadd_ps(x, code, sum); }
  static Vec finish(Sum sum, const float*, Vec bias) { return _mm256_add_ps(sum, bias); }
};

struct Avx2Doubles {
  static constexpr int kLanes = 4;
  using Vec = __m256d;
  static Vec load(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
  static Vec load(const double* p) { return _mm256_loadu_pd(p); }
  static Vec broadcast(double x) { return _mm256_set1_pd(x); }
  static Vec sub(Vec a, Vec b) { return _mm256_sub_pd(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm256_mul_pd(a, b); }
  static Vec add(Vec a, Vec b) { return _mm256_add_pd(a, b); }
  static Vec max(Vec a, Vec b) { return _mm256_max_pd(a, b); }
  static double sum(Vec a) {
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
  static double largest(Vec a) {
    const __m128d two = _mm_max_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_max_sd(two, _mm_unpackhi_pd(two, two)));
  }
  static Vec abs(Vec a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
  static void store(double* p, Vec a) { _mm256_storeu_pd(p, a); }
  static Vec store_rounded(float* p, Vec a) {
    const __m128 rounded = _mm256_cvtpd_ps(a);
    _mm_storeu_ps(p, rounded);
    return _mm256_cvtps_pd(rounded);
  }
  static Vec store_rounded(int16_t* p, Vec a) {
    const __m128i rounded = _mm256_cvtpd_epi32(a);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(rounded, rounded));
    return _mm256_cvtepi32_pd(rounded);
  }
  static void transpose(Vec (&rows)[4]) {
    const Vec a = _mm256_unpacklo_pd(rows[0], rows[1]), b = _mm256_unpackhi_pd(rows[0], rows[1]);
    const Vec c = _mm256_unpacklo_pd(rows[2], rows[3]), d = _mm256_unpackhi_pd(rows[2], rows[3]);
    rows[0] = _mm256_permute2f128_pd(a, c, 0x20), rows[1] = _mm256_permute2f128_pd(b, d, 0x20);
    rows[2] = _mm256_permute2f128_pd(a, c, 0x31), rows[3] = _mm256_permute2f128_pd(b, d, 0x31);
  }
};

}  // namespace

const NearestCodeFilter kNearestCodeAvx2 = {"avx2",
                                            WordFormat::kFloat32,
                                            8,
                                            2,
                                            scan_panels<Avx2, 2>,
                                            find_in_panels<Avx2, 2>,
                                            select_lanes<Avx2>,
                                            kRowMath<Avx2Doubles>,
                                            nullptr};

}  // namespace vqdm::cpu
