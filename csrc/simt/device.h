// What csrc/cuda/simt.cuh gives to kernels, on the host. Each function has the name and meaning it has there.

#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/stream.h"
#include "interpreter.h"
#include "shared_memory.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __noinline__

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace vqdm::simt {

inline int thread_index() {
  return place().thread;
}
inline int block_size() {
  return place().block_size;
}
inline int64_t block_index() {
  return place().block;
}
inline int64_t num_blocks() {
  return place().num_blocks;
}
inline int lane_index() {
  return thread_index() % kWarpSize;
}
inline int warp_index() {
  return thread_index() / kWarpSize;
}

inline void sync_threads(const Site& site = Site::current()) {
  block_barrier(site);
}
inline void sync_warp(const Site& site = Site::current()) {
  warp_barrier(site);
}

template <typename T>
T shuffle(T value, int source_lane, const Site& site = Site::current()) {
  struct Operand {
    T value;
    int source;
  } in{value, source_lane};
  static_assert(std::is_trivially_copyable_v<Operand> && sizeof(Operand) <= kMaxOperandBytes);
  const auto combine = [](WarpOperands& operands) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      Operand own, other;
      std::memcpy(&own, operands.in[lane], sizeof own);
      std::memcpy(&other, operands.in[own.source & (kWarpSize - 1)], sizeof other);
      std::memcpy(operands.out[lane], &other.value, sizeof(T));
    }
  };
  warp_collective(&in, sizeof in, &value, sizeof value, combine, site);
  return value;
}
template <typename T>
T shuffle_xor(T value, int lane_mask, const Site& site = Site::current()) {
  return simt::shuffle(value, lane_index() ^ lane_mask, site);
}
inline unsigned ballot(bool predicate, const Site& site = Site::current()) {
  unsigned votes = 0;
  const auto combine = [](WarpOperands& operands) {
    unsigned all = 0;
    for (int lane = 0; lane < kWarpSize; ++lane) all |= unsigned(operands.in[lane][0]) << lane;
    for (int lane = 0; lane < kWarpSize; ++lane) std::memcpy(operands.out[lane], &all, sizeof all);
  };
  warp_collective(&predicate, 1, &votes, sizeof votes, combine, site);
  return votes;
}
inline bool any(bool predicate, const Site& site = Site::current()) {
  return simt::ballot(predicate, site) != 0;
}
inline bool all(bool predicate, const Site& site = Site::current()) {
  return simt::ballot(predicate, site) == ~0u;
}

// Threads take turns, so that a plain addition is as good as an atomic one.
inline int atomic_add(int* address, int value) {
  const int before = *address;
  *address += value;
  return before;
}
inline void atomic_max(unsigned* address, unsigned value) {
  if (*address < value) *address = value;
}

// An element of shared memory: reads and writes go through the checks of shared_memory.h.
template <typename T>
class SharedElement {
 public:
  SharedElement(int64_t offset, const Site& site) : offset_(offset), site_(site) {}
  operator T() const {
    T value;
    read_shared(offset_, &value, sizeof value, site_);
    return value;
  }
  void operator=(const T& value) const { write_shared(offset_, &value, sizeof value, site_); }
  void operator=(const SharedElement& other) const { *this = T(other); }

 private:
  int64_t offset_;
  Site site_;
};

// An index that knows where it was written, since operator[] takes no second argument.
struct SharedIndex {
  int64_t value;
  Site site;
  template <typename I>
  SharedIndex(I i, const Site& s = Site::current()) : value(int64_t(i)), site(s) {}
};

template <typename T>
struct Shared {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 4 == 0, "races are looked for word by word");
  int64_t offset, count;  // in bytes; in elements
  SharedElement<T> operator[](SharedIndex i) const {
    if (i.value < 0 || i.value >= count) {
      fail("shared memory: index " + std::to_string(i.value) + " of an array of " + std::to_string(count) + ", at " +
           describe(i.site));
    }
    return {offset + i.value * int64_t(sizeof(T)), i.site};
  }
  template <typename U>
  Shared<U> as() const {
    return {offset, count * int64_t(sizeof(T)) / int64_t(sizeof(U))};
  }
  Shared<T> from(int64_t i) const { return {offset + i * int64_t(sizeof(T)), count - i}; }
};

class SharedMemory {
 public:
  template <typename T>
  Shared<T> take(int64_t count, const Site& site = Site::current()) {
    const int64_t start = used_;
    used_ += (count * int64_t(sizeof(T)) + 15) / 16 * 16;
    check_shared_size(used_, site);
    return {start, count};
  }

 private:
  int64_t used_ = 0;
};

inline void copy_async(Shared<uint4> to, int64_t i, const uint4* from, const Site& site = Site::current()) {
  if (i < 0 || i >= to.count) fail("shared memory: a copy to index " + std::to_string(i) + ", at " + describe(site));
  if (reinterpret_cast<uintptr_t>(from) % sizeof(uint4) != 0) fail("a copy from an address that is not aligned");
  queue_copy(to.offset + i * int64_t(sizeof(uint4)), from, sizeof(uint4), site);
}
inline void commit_copies() {
  commit_queued_copies();
}
template <int N>
void wait_copies(const Site& site = Site::current()) {
  land_copies(N, site);
}

// Tensor cores add inexactly; this adds as badly as the error bounds of the kernels allow for (see mma.cpp).
void mma_f16(float (&acc)[4], const uint4& a, uint32_t b0, uint32_t b1, const Site& site = Site::current());
void mma_bf16(float (&acc)[4], const uint4& a, uint32_t b0, uint32_t b1, const Site& site = Site::current());

inline float float_from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t bits_from_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline int lowest_bit(unsigned x) {
  return __builtin_ctz(x);
}
float float_from_half(uint16_t bits);
uint16_t half_from_float(float x);
// As far off as the device's may be, so that nothing relies on less.
inline float approximate_exp2(float x) {
  return x == 0 ? 1.0f : exp2f(x) * (1 + 0x1p-22f);
}
inline float approximate_sqrt(float x) {
  return sqrtf(x) * (1 - 0x1p-22f);
}

struct LaunchShape {
  int64_t blocks;
  int threads;
  int shared_bytes;
};

template <typename... Params>
cudaError_t launch(void (*kernel)(Params...), LaunchShape shape, cudaStream_t, Params... params) {
  run(shape.blocks, shape.threads, shape.shared_bytes, [&] { kernel(params...); });
  return cudaSuccess;
}

// A small device, so that loops over more work than blocks are run through. Its max_shared_bytes() is the
// interpreter's.
inline int num_multiprocessors() {
  return 2;
}

}  // namespace vqdm::simt
