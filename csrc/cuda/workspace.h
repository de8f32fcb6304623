// Lays out the pieces of one workspace; without one, only measures them.

#pragma once

#include <cstdint>

namespace vqdm::cuda {

class Workspace {
 public:
  explicit Workspace(void* start) : start_(static_cast<char*>(start)) {}

  template <typename T>
  void take(T*& piece, int64_t count) {
    piece = start_ == nullptr ? nullptr : reinterpret_cast<T*>(start_ + bytes_);
    bytes_ += (count * int64_t(sizeof(T)) + 255) / 256 * 256;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* start_;
  int64_t bytes_ = 0;
};

}  // namespace vqdm::cuda
