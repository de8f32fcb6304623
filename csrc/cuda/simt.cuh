// The thin layer that all kernels are written against: what a kernel may ask of the machine, and nothing else.
//
//   under nvcc    each function is one intrinsic
//   VQDM_SIMT     csrc/simt runs the same kernel source on the host, thread by thread: with adversarial schedules, and
//                 with every access to shared memory checked. That is how kernels are tested without a GPU.
//
// Warps are whole: warp operations take all 32 lanes. Blocks are one-dimensional. Kernels take their parameters by
// value and are started with launch().

#pragma once

#include "stream.h"

#if defined(VQDM_SIMT)

#include "simt/device.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstdio>

namespace vqdm::simt {

inline constexpr unsigned kAllLanes = 0xffffffffu;

// ---- where this thread is ----

__device__ inline int thread_index() {
  return int(threadIdx.x);
}
__device__ inline int block_size() {
  return int(blockDim.x);
}
__device__ inline int64_t block_index() {
  return blockIdx.x;
}
__device__ inline int64_t num_blocks() {
  return gridDim.x;
}
__device__ inline int lane_index() {
  return int(threadIdx.x % 32);
}
__device__ inline int warp_index() {
  return int(threadIdx.x / 32);
}

// ---- barriers and warp operations ----

__device__ inline void sync_threads() {
  __syncthreads();
}
__device__ inline void sync_warp() {
  __syncwarp();
}
template <typename T>
__device__ inline T shuffle(T value, int source_lane) {
  return __shfl_sync(kAllLanes, value, source_lane);
}
template <typename T>
__device__ inline T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(kAllLanes, value, lane_mask);
}
__device__ inline unsigned ballot(bool predicate) {
  return __ballot_sync(kAllLanes, predicate);
}
__device__ inline bool any(bool predicate) {
  return __any_sync(kAllLanes, predicate);
}
__device__ inline bool all(bool predicate) {
  return __all_sync(kAllLanes, predicate);
}

// ---- atomics on global memory ----

__device__ inline int atomic_add(int* address, int value) {
  return atomicAdd(address, value);
}
__device__ inline void atomic_max(unsigned* address, unsigned value) {
  atomicMax(address, value);
}

// ---- shared memory: given by launch(), taken piece by piece, in the same order by every thread ----

template <typename T>
struct Shared {
  T* data;
  __device__ T& operator[](int64_t i) const { return data[i]; }
  template <typename U>
  __device__ Shared<U> as() const {
    return {reinterpret_cast<U*>(data)};
  }
  __device__ Shared<T> from(int64_t i) const { return {data + i}; }
};

class SharedMemory {
 public:
  template <typename T>
  __device__ Shared<T> take(int64_t count) {
    extern __shared__ __align__(16) unsigned char vqdm_shared[];
    T* start = reinterpret_cast<T*>(vqdm_shared + used_);
    used_ += (count * int64_t(sizeof(T)) + 15) / 16 * 16;
    return {start};
  }

 private:
  int64_t used_ = 0;
};

// ---- asynchronous copies from global to shared memory, 16 bytes each, in groups ----

__device__ inline void copy_async(Shared<uint4> to, int64_t i, const uint4* from) {
  const unsigned address = unsigned(__cvta_generic_to_shared(to.data + i));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}
__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most N of this thread's groups are still under way.
template <int N>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- matrix fragments: acc[16 x 8] += a[16 x 16] b[16 x 8], layouts as PTX gives them for mma.m16n8k16 ----

__device__ inline void mma_f16(float (&acc)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
__device__ inline void mma_bf16(float (&acc)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// ---- numbers ----

__device__ inline float float_from_bits(uint32_t bits) {
  return __uint_as_float(bits);
}
__device__ inline uint32_t bits_from_float(float x) {
  return __float_as_uint(x);
}
__device__ inline int lowest_bit(unsigned x) {  // of x != 0
  return __ffs(int(x)) - 1;
}
__device__ inline float float_from_half(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}
__device__ inline uint16_t half_from_float(float x) {  // to nearest, ties to even
  return __half_as_ushort(__float2half_rn(x));
}

// Approximate, to about 2^-22 of the result; what is below the smallest normal number counts as 0.
__device__ inline float approximate_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float approximate_sqrt(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- failure of an invariant that the host could not check without waiting for the device ----

[[noreturn]] __device__ inline void fail(const char* what) {
  printf("%s\n", what);
  __trap();
  __builtin_unreachable();
}

// ---- launching ----

struct LaunchShape {
  int64_t blocks;
  int threads;
  int shared_bytes;
};

template <typename... Params>
cudaError_t launch(void (*kernel)(Params...), LaunchShape shape, cudaStream_t stream, Params... params) {
  if (shape.blocks == 0) return cudaSuccess;
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shape.shared_bytes > 48 << 10) {  // more than every architecture gives unasked
    const cudaError_t error =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
    if (error != cudaSuccess) return error;
  }
  void* arguments[] = {&params...};
  const cudaError_t error = cudaLaunchKernel(function, dim3(unsigned(shape.blocks)), dim3(unsigned(shape.threads)),
                                             arguments, size_t(shape.shared_bytes), stream);
  if (error != cudaSuccess) cudaGetLastError();  // reported here, and not to whoever asks next
  return error;
}

// ---- the current device ----

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&value, attribute, device) != cudaSuccess) {
    return 0;
  }
  return value;
}
inline int num_multiprocessors() {
  return device_attribute(cudaDevAttrMultiProcessorCount);
}
inline int max_shared_bytes() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

}  // namespace vqdm::simt

#endif
