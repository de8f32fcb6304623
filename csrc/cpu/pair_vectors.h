// Vectors of kBytes of float or double, on GCC's vector types: what they need beside arithmetic.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <type_traits>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace vqdm::cpu {

// The anonymous namespace keeps the linker from merging, say, an AVX-512 copy into the portable kernel.
namespace {

// Constants of 2^x.
template <class T>
struct Exp2;

template <>
struct Exp2<float> {
  using Int = int32_t;
  static constexpr float kRound = 0x1.8p23f;  // adding it leaves no room for a fraction
  static constexpr int kFraction = 23;
  static constexpr float kLowest = -126;
  // Minimax of 2^f on [-1/2, 1/2], relative error 7.5e-8 (Remez).
  static constexpr float kCoefficients[] = {0x1.00000133c1310p+0f, 0x1.62e428c5bb594p-1f, 0x1.ebf9174f83c53p-3f,
                                            0x1.c6b6e4f711defp-5f, 0x1.3d0c52d1e5085p-7f, 0x1.5c08e64ddf36cp-10f};
  // The same on [0, 1].
  static constexpr float kOfFraction[] = {0x1.fffffd7c4d772p-1f, 0x1.62e4f5a917be1p-1f, 0x1.ebd5a8d7a7bf6p-3f,
                                          0x1.c9544661f517fp-5f, 0x1.26900c642ce67p-7f, 0x1.ec320b37883c0p-10f};
};

template <>
struct Exp2<double> {
  using Int = int64_t;
  static constexpr double kRound = 0x1.8p52;
  static constexpr int kFraction = 52;
  static constexpr double kLowest = -1022;
  // The same, relative error 3.1e-18.
  static constexpr double kCoefficients[] = {0x1.0000000000000p+0,  0x1.62e42fefa39efp-1,  0x1.ebfbdff82c5adp-3,
                                             0x1.c6b08d7049fd1p-5,  0x1.3b2ab6fb9f413p-7,  0x1.5d87fe78cf260p-10,
                                             0x1.43091310bf66dp-13, 0x1.ffcbfba7bc9a1p-17, 0x1.62bfc3c1d2153p-20,
                                             0x1.b5267882d5309p-24, 0x1.e620fb67ac6ddp-28, 0x1.e7aa1c12faa3cp-32};
};

template <class T, int kBytes>
struct PairVectors {
  using Int = typename Exp2<T>::Int;
  static constexpr int L = kBytes / int(sizeof(T));
  typedef T Vec __attribute__((vector_size(kBytes)));
  typedef Int Ints __attribute__((vector_size(kBytes)));

  static Vec load(const T* p) {
    Vec a;
    std::memcpy(&a, p, sizeof a);
    return a;
  }
  static void store(T* p, Vec a) { std::memcpy(p, &a, sizeof a); }
  static Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
    if constexpr (kBytes == 64 && std::is_same_v<T, float>) return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#endif
    return a > b ? a : b;
  }
  static Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
    if constexpr (kBytes == 64 && std::is_same_v<T, float>) return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#endif
    return a < b ? a : b;
  }
  static T largest(Vec a) {
    T out = a[0];
    for (int l = 1; l < L; ++l) out = a[l] > out ? a[l] : out;
    return out;
  }
  static double sum(Vec a) {
    double out = 0;
    for (int l = 0; l < L; ++l) out += double(a[l]);
    return out;
  }
  static bool any_below(Vec a, Vec b) { return below(a, b) != 0; }
  static unsigned below(Vec a, Vec b) {  // lanes, a bit each
#if defined(__AVX512F__)
    if constexpr (kBytes == 64 && std::is_same_v<T, float>) {
      return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
    } else if constexpr (kBytes == 64) {
      return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ);
    }
#endif
#if defined(__AVX2__)
    if constexpr (kBytes == 32 && std::is_same_v<T, float>) return _mm256_movemask_ps((__m256)(a < b));
    if constexpr (kBytes == 32 && std::is_same_v<T, double>) return _mm256_movemask_pd((__m256d)(a < b));
#endif
    unsigned mask = 0;
    for (int l = 0; l < L; ++l) mask |= unsigned(a[l] < b[l]) << l;
    return mask;
  }
  static Vec sqrt(Vec a) {
#if defined(__AVX512F__)
    if constexpr (kBytes == 64 && std::is_same_v<T, double>) return (Vec)_mm512_sqrt_pd((__m512d)a);
#endif
#if defined(__AVX2__)
    if constexpr (kBytes == 32 && std::is_same_v<T, float>) return (Vec)_mm256_sqrt_ps((__m256)a);
    if constexpr (kBytes == 32 && std::is_same_v<T, double>) return (Vec)_mm256_sqrt_pd((__m256d)a);
#endif
    Vec out{};
    for (int l = 0; l < L; ++l) out[l] = std::sqrt(a[l]);
    return out;
  }
  template <int n>
  [[gnu::always_inline]] static Vec polynomial(Vec f, const T (&coefficients)[n]) {
    Vec p = Vec{} + coefficients[n - 1];
#pragma GCC unroll 16
    for (int i = n - 2; i >= 0; --i) p = p * f + coefficients[i];
    return p;
  }

  // 2^x for x up to about 100; what would be subnormal is the smallest normal number.
  static Vec exp2(Vec x) {
    using Of = Exp2<T>;
#if defined(__AVX512F__)
    if constexpr (kBytes == 64 && std::is_same_v<T, float>) {  // by two instructions made for it
      const Vec f = (Vec)_mm512_reduce_ps((__m512)x, 0x01);    // x - floor(x)
      return (Vec)_mm512_scalef_ps((__m512)polynomial(f, Of::kOfFraction), (__m512)x);
    }
#endif
    x = max(x, Vec{} + Of::kLowest);
    const Vec shifted = x + Of::kRound;
    const Vec f = x - (shifted - Of::kRound);
    const Vec p = polynomial(f, Of::kCoefficients);
    return (Vec)((Ints)p + ((Ints)shifted << Of::kFraction));
  }
};

}  // namespace
}  // namespace vqdm::cpu
