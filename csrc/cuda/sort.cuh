// Stable sort of (key, value) pairs on the device: CUB's radix sort under nvcc, the standard library's on the host.

#pragma once

#include "simt.cuh"

#if defined(VQDM_SIMT)
#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>
#else
#include <cub/device/device_radix_sort.cuh>
#endif

namespace vqdm::simt {

struct SortBuffers {
  const uint32_t* keys;
  uint32_t* sorted_keys;
  const uint32_t* values;
  uint32_t* sorted_values;
};

// By the lowest `bits` bits of the keys. With temporary == nullptr, only says in `bytes` how much of it is needed.
inline cudaError_t sort_pairs(void* temporary, size_t& bytes, SortBuffers buffers, int64_t count, int bits,
                              cudaStream_t stream) {
#if defined(VQDM_SIMT)
  (void)stream;
  if (temporary == nullptr) {
    bytes = 16;
    return cudaSuccess;
  }
  const uint32_t mask = bits >= 32 ? ~0u : (1u << bits) - 1;
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return (buffers.keys[a] & mask) < (buffers.keys[b] & mask); });
  for (int64_t i = 0; i < count; ++i) {
    buffers.sorted_keys[i] = buffers.keys[order[i]];
    buffers.sorted_values[i] = buffers.values[order[i]];
  }
  return cudaSuccess;
#else
  return cub::DeviceRadixSort::SortPairs(temporary, bytes, buffers.keys, buffers.sorted_keys, buffers.values,
                                         buffers.sorted_values, uint32_t(count), 0, bits, stream);
#endif
}

}  // namespace vqdm::simt
