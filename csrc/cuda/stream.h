// cudaStream_t and cudaError_t, for headers that both nvcc and a plain C++ compiler read.
//
// VQDM_SIMT marks the build in which the kernels run on the host (csrc/simt): it needs no CUDA toolkit.

#pragma once

#if defined(VQDM_SIMT)
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline const char* cudaGetErrorString(cudaError_t) {
  return "no error";
}
#else
#include <cuda_runtime_api.h>
#endif
