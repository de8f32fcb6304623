// Compiled with AVX-512 F/VL/DQ/BW/VNNI; called only where cpu_features() finds them.
//
// VPDPWSSD multiplies 32 pairs of int16 per instruction and adds them in int32: twice the rate of fp32's fused
// multiply-add, on half the bytes. Sums wrap modulo 2^32 on the way, and the format keeps the total inside int32
// (nearest_code_format.h), so the dot product is exact.

#include "avx512_vectors.h"
#include "nearest_code_scan.h"
#include "row_math_loops.h"

namespace vqdm::cpu {
namespace {

struct Avx512Vnni : Avx512Scores {
  using Words = __m512i;
  using Sum = __m512i;
  static Words load_words(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Words broadcast(const int32_t* p) { return _mm512_set1_epi32(*p); }
  // By name, not through intrinsics: around those, GCC 12 moves the 24 sums through the stack.
  static Sum start(Words x, Words code) {
    Sum sum;
    __asm__("vpmaddwd %2, %1, %0" : "=v"(sum) : "v"(x), "v"(code));
    return sum;
  }
  static Sum add(Words x, Words code, Sum sum) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(code));
    return sum;
  }
  static Vec finish(Sum sum, const float* factor, Vec bias) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(*factor), bias);
  }
};

}  // namespace

const NearestCodeFilter kNearestCodeAvx512Vnni = {"avx512vnni",
                                                  WordFormat::kInt16Pair,
                                                  16,
                                                  4,
                                                  scan_panels<Avx512Vnni, 4>,
                                                  find_in_panels<Avx512Vnni, 4>,
                                                  select_lanes<Avx512Vnni>,
                                                  kRowMath<Avx512Doubles>,
                                                  &kNearestCodeAvx512};

}  // namespace vqdm::cpu
