// What the files <op>_cuda.cpp need of the device they run on. They are built twice: with nvcc's kernels, for CUDA
// tensors, into _C_cuda; and with VQDM_SIMT, where csrc/simt runs the same kernels on CPU tensors, into the test-only
// module _C_simt, as torch.ops.vqdm_simt.*.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#if !defined(VQDM_SIMT)
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../cuda/stream.h"

#if defined(VQDM_SIMT)
#define VQDM_REGISTER_CUDA(name, schema, function) \
  STABLE_TORCH_LIBRARY_FRAGMENT(vqdm_simt, m) {    \
    m.def(schema);                                 \
  }                                                \
  STABLE_TORCH_LIBRARY_IMPL(vqdm_simt, CPU, m) {   \
    m.impl(name, TORCH_BOX(function));             \
  }
#else
#define VQDM_REGISTER_CUDA(name, schema, function) \
  STABLE_TORCH_LIBRARY_IMPL(vqdm, CUDA, m) {       \
    m.impl(name, TORCH_BOX(function));             \
  }
#endif

namespace vqdm {

// Makes the tensor's device the current one for as long as it lives, and knows that device's current stream.
class OnDeviceOf {
 public:
#if defined(VQDM_SIMT)
  explicit OnDeviceOf(const torch::stable::Tensor&) {}
  void require(const char*, const torch::stable::Tensor&) const {}
#else
  explicit OnDeviceOf(const torch::stable::Tensor& t) : guard_(t.get_device_index()) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream_));
    index_ = t.get_device_index();
  }
  // A pointer of another device would spoil this one's context for the whole process.
  void require(const char* op, const torch::stable::Tensor& t) const {
    if (!t.is_cuda() || t.get_device_index() != index_) {
      throw std::invalid_argument(std::string("vqdm::") + op + ": expected all tensors on one device");
    }
  }
#endif
  cudaStream_t stream() const { return static_cast<cudaStream_t>(stream_); }

 private:
#if !defined(VQDM_SIMT)
  torch::stable::accelerator::DeviceGuard guard_;
  int64_t index_ = 0;
#endif
  void* stream_ = nullptr;
};

// Memory for the kernels of one call. torch's allocator keeps it from others until the stream is through with it.
inline torch::stable::Tensor workspace_beside(const torch::stable::Tensor& t, int64_t bytes) {
  torch::stable::Tensor workspace = torch::stable::new_empty(t, {bytes}, torch::headeronly::ScalarType::Byte);
#if defined(VQDM_SIMT)
  if (bytes > 0) std::memset(workspace.mutable_data_ptr(), 0xa5, size_t(bytes));  // nothing may rely on zeros
#endif
  return workspace;
}

inline void check_launched(const char* op, cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("vqdm::") + op + ": " + cudaGetErrorString(error));
}

}  // namespace vqdm
