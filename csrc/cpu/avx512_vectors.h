// What the AVX-512 filters share: float scores and their minima, and the float64 vectors of the exact distances.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace vqdm::cpu {
namespace {

struct Avx512Scores {
  static constexpr int kLanes = 16;
  using Vec = __m512;

  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
  static Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
  static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static float smallest(Vec a) { return _mm512_reduce_min_ps(a); }
  static void keep_smaller(Vec a, Vec best, int32_t panel, int32_t* panels) {
    _mm512_mask_storeu_epi32(panels, _mm512_cmp_ps_mask(a, best, _CMP_LT_OQ), _mm512_set1_epi32(panel));
  }
  static uint16_t not_above(Vec a, float b) { return _mm512_cmp_ps_mask(a, _mm512_set1_ps(b), _CMP_LE_OQ); }
};

struct Avx512Doubles {
  static constexpr int kLanes = 8;
  using Vec = __m512d;

  static Vec load(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
  static Vec load(const double* p) { return _mm512_loadu_pd(p); }
  static Vec broadcast(double x) { return _mm512_set1_pd(x); }
  static Vec sub(Vec a, Vec b) { return _mm512_sub_pd(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm512_mul_pd(a, b); }
  static Vec add(Vec a, Vec b) { return _mm512_add_pd(a, b); }
  static Vec max(Vec a, Vec b) { return _mm512_max_pd(a, b); }
  static double sum(Vec a) { return _mm512_reduce_add_pd(a); }
  static double largest(Vec a) { return _mm512_reduce_max_pd(a); }
  static Vec abs(Vec a) { return _mm512_abs_pd(a); }
  static void store(double* p, Vec a) { _mm512_storeu_pd(p, a); }
  static Vec store_rounded(float* p, Vec a) {
    const __m256 rounded = _mm512_cvtpd_ps(a);
    _mm256_storeu_ps(p, rounded);
    return _mm512_cvtps_pd(rounded);
  }
  static Vec store_rounded(int16_t* p, Vec a) {
    const __m256i rounded = _mm512_cvtpd_epi32(a);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtepi32_epi16(rounded));
    return _mm512_cvtepi32_pd(rounded);
  }
  static void transpose(Vec (&r)[8]) {
    Vec pairs[8], quads[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
      pairs[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {  // within each half of four rows: columns (i % 2, i % 2 + 4), then (+ 2, + 6)
      const int a = i / 4 * 4 + i % 2;
      quads[i] = i % 4 < 2 ? _mm512_shuffle_f64x2(pairs[a], pairs[a + 2], 0x88)
                           : _mm512_shuffle_f64x2(pairs[a], pairs[a + 2], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm512_shuffle_f64x2(quads[i], quads[i + 4], 0x88);
      r[i + 4] = _mm512_shuffle_f64x2(quads[i], quads[i + 4], 0xdd);
    }
  }
};

}  // namespace
}  // namespace vqdm::cpu
