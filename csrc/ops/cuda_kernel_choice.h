// Which of an operator's CUDA kernels run.

#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace vqdm {

// VQDM_CUDA_KERNEL=portable leaves out the tensor cores (for tests).
inline bool tensor_cores_allowed(const std::string& op) {
  const char* asked = std::getenv("VQDM_CUDA_KERNEL");
  const std::string name = asked == nullptr ? "" : asked;
  if (name == "portable") return false;
  if (name == "tensor_core" || name.empty()) return true;
  throw std::invalid_argument(op + ": expected VQDM_CUDA_KERNEL to be portable or tensor_core, got " + name);
}

}  // namespace vqdm
