#include "nearest_code_filter.h"

#include "cpu_features.h"

namespace vqdm::cpu {

const NearestCodeFilter& nearest_code_filter() {
#if defined(VQDM_X86_KERNELS)
  if (usable_features().avx512_vnni) return kNearestCodeAvx512Vnni;
  if (usable_features().avx512) return kNearestCodeAvx512;
  if (usable_features().avx2_fma) return kNearestCodeAvx2;
#endif
  return kNearestCodePortable;
}

}  // namespace vqdm::cpu
