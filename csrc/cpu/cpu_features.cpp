#include "cpu_features.h"

#include <cstdlib>

namespace vqdm::cpu {

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = [] {
    CpuFeatures found;
#if defined(__x86_64__) || defined(__i386__)
    // The builtin also asks the operating system (XGETBV), so a kernel that masks AVX-512 is respected.
    __builtin_cpu_init();
    found.avx2_fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    found.avx512 = found.avx2_fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    found.avx512_vnni = found.avx512 && __builtin_cpu_supports("avx512vnni");
#endif
    return found;
  }();
  return features;
}

const CpuFeatures& usable_features() {
  static const CpuFeatures features = [] {
    CpuFeatures usable = cpu_features();
    const char* asked = std::getenv("VQDM_CPU_KERNEL");
    const std::string most = asked ? asked : "avx512vnni";
    usable.avx512_vnni = usable.avx512_vnni && most == "avx512vnni";
    usable.avx512 = usable.avx512 && most.starts_with("avx512");
    usable.avx2_fma = usable.avx2_fma && most != "portable";
    return usable;
  }();
  return features;
}

std::vector<std::string> cpu_feature_names() {
  std::vector<std::string> names;
  if (cpu_features().avx2_fma) names.insert(names.end(), {"avx2", "fma"});
  if (cpu_features().avx512) names.emplace_back("avx512");
  if (cpu_features().avx512_vnni) names.emplace_back("avx512vnni");
  return names;
}

}  // namespace vqdm::cpu
