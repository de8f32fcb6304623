// Random numbers that are functions of a counter: the same whichever thread asks, and in which order.
//
// Philox4x32-10 (Salmon et al., SC 2011): the key is the seed, the counter (row, code / 4, head), the word code % 4.

#pragma once

#include <cmath>
#include <cstdint>

namespace vqdm::cpu {

// A standard Gumbel number, -log(-log U) with U = (word + 1/2) / 2^32: between -3.1 and 22.9.
inline constexpr double kLargestGumbel = 22.88;

inline double gumbel(uint64_t seed, uint64_t row, uint64_t code, uint32_t head) {
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  uint32_t c[4] = {uint32_t(row), uint32_t(row >> 32), uint32_t(code / 4), head};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c[0], b = uint64_t(0xCD9E8D57u) * c[2];
    const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ key0, uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ key1,
                              uint32_t(a)};
    for (int i = 0; i < 4; ++i) c[i] = next[i];
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return -std::log(-std::log((double(c[code % 4]) + 0.5) * 0x1p-32));
}

}  // namespace vqdm::cpu
