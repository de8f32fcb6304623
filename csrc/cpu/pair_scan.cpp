#include "pair_scan.h"

#include "cpu_features.h"

namespace vqdm::cpu {

template <>
const PairScan<float>& pair_scan() {
#if defined(VQDM_X86_KERNELS)
  if (usable_features().avx512) return kPairScanAvx512_32;
  if (usable_features().avx2_fma) return kPairScanAvx2_32;
#endif
  return kPairScanPortable32;
}

template <>
const PairScan<double>& pair_scan() {
#if defined(VQDM_X86_KERNELS)
  if (usable_features().avx512) return kPairScanAvx512_64;
  if (usable_features().avx2_fma) return kPairScanAvx2_64;
#endif
  return kPairScanPortable64;
}

}  // namespace vqdm::cpu
