// torch's threads, as the CPU kernels take them (csrc/cpu/parallel_for.h).

#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <functional>

namespace vqdm {

inline void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& f) {
  torch::stable::parallel_for(0, n, grain, f);
}

}  // namespace vqdm
