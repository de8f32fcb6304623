// How the kernels of this folder are given threads.

#pragma once

#include <cstdint>
#include <functional>

namespace vqdm::cpu {

// Calls f(begin, end) on ranges that cover [0, n), each of at least `grain` (but the last), perhaps at the same time.
using ParallelFor = std::function<void(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& f)>;

}  // namespace vqdm::cpu
