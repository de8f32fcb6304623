// Uninitialised memory on cache-line boundaries, kept and reused while it is large enough.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace vqdm::cpu {

template <typename T>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t count = 0) { reserve(count); }

  // The content is lost where the buffer grows.
  T* reserve(int64_t count) {
    if (count > capacity_) {
      data_.reset();
      capacity_ = 0;
      data_.reset(static_cast<T*>(std::aligned_alloc(64, (size_t(count) * sizeof(T) + 63) / 64 * 64)));
      if (data_ == nullptr) throw std::bad_alloc();
      capacity_ = count;
    }
    return data_.get();
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> data_;
  int64_t capacity_ = 0;
};

}  // namespace vqdm::cpu
