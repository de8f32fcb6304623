// Within its scope this thread rounds to nearest and keeps subnormal numbers, whatever torch.set_flush_denormal() said:
// the answer is defined on the given values, and a flushed input would be another value.

#pragma once

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

namespace vqdm::cpu {

class DefaultFloatMode {
#if defined(__x86_64__) || defined(__i386__)
 public:
  DefaultFloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }  // all exceptions masked, nearest, no FTZ, no DAZ
  ~DefaultFloatMode() { _mm_setcsr(saved_); }
  DefaultFloatMode(const DefaultFloatMode&) = delete;
  DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

 private:
  unsigned saved_;
#endif
};

}  // namespace vqdm::cpu
