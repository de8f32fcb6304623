#include "nearest_code_filter.h"

#include <cstdlib>
#include <string>

#include "cpu_features.h"

namespace vqdm::cpu {

const NearestCodeFilter& nearest_code_filter() {
  static const NearestCodeFilter& chosen = []() -> const NearestCodeFilter& {
    const char* asked = std::getenv("VQDM_CPU_KERNEL");
    const std::string name = asked ? asked : "avx512vnni";
#if defined(VQDM_X86_KERNELS)
    if (name == "avx512vnni" && cpu_features().avx512_vnni) return kNearestCodeAvx512Vnni;
    if ((name == "avx512vnni" || name == "avx512") && cpu_features().avx512) return kNearestCodeAvx512;
    if (name != "portable" && cpu_features().avx2_fma) return kNearestCodeAvx2;
#endif
    return kNearestCodePortable;
  }();
  return chosen;
}

}  // namespace vqdm::cpu
