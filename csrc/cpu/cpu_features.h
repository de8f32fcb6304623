// Which instruction sets this processor offers to a kernel: asked once per process.

#pragma once

#include <string>
#include <vector>

namespace vqdm::cpu {

struct CpuFeatures {
  bool avx2_fma = false;     // AVX2 and FMA3, enabled by the operating system
  bool avx512 = false;       // AVX-512 F, VL, DQ and BW, enabled by the operating system
  bool avx512_vnni = false;  // and VNNI on 512-bit registers
};

const CpuFeatures& cpu_features();
// Those that kernels use: all of them, unless VQDM_CPU_KERNEL=portable|avx2|avx512 asks for fewer.
const CpuFeatures& usable_features();
std::vector<std::string> cpu_feature_names();

}  // namespace vqdm::cpu
