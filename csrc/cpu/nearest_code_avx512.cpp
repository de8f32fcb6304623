// Compiled with AVX-512 F/VL/DQ/BW; called only where cpu_features() finds them.

#include "avx512_vectors.h"
#include "nearest_code_scan.h"
#include "row_math_loops.h"

namespace vqdm::cpu {
namespace {

struct Avx512 : Avx512Scores {
  using Words = __m512;
  using Sum = __m512;
  static Words load_words(const int32_t* p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }
  static Words broadcast(const int32_t* p) { return _mm512_castsi512_ps(_mm512_set1_epi32(*p)); }
  static Sum start(Words x, Words code) { return _mm512_mul_ps(x, code); }
  static Sum add(Words x, Words code, Sum sum) { return _mm512_fmadd_ps(x, code, sum); }
  static Vec finish(Sum sum, const float*, Vec bias) { return _mm512_add_ps(sum, bias); }
};

}  // namespace

const NearestCodeFilter kNearestCodeAvx512 = {"avx512",
                                              WordFormat::kFloat32,
                                              16,
                                              4,
                                              scan_panels<Avx512, 4>,
                                              find_in_panels<Avx512, 4>,
                                              select_lanes<Avx512>,
                                              kRowMath<Avx512Doubles>,
                                              nullptr};

}  // namespace vqdm::cpu
