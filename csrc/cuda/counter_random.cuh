// Random numbers that are functions of a counter: the same whichever thread asks, and in which order.
//
// Philox4x32-10 (Salmon et al., SC 2011): the key is the seed, the counter (row, code / 4, head), the word code % 4.
// A Gumbel number is -log(-log U) with U = (word + 1/2) / 2^32: between -3.14 and 22.88.

#pragma once

#include <math.h>

#include "simt.cuh"

namespace vqdm::cuda {

inline constexpr float kLeastGumbel = -3.14f, kMostGumbel = 22.88f;

struct RandomWords {  // of codes 4 n .. 4 n + 3
  uint32_t word[4];
};

__device__ inline RandomWords random_words(uint64_t seed, uint64_t row, uint64_t code, uint32_t head) {
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  RandomWords c{{uint32_t(row), uint32_t(row >> 32), uint32_t(code / 4), head}};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c.word[0], b = uint64_t(0xCD9E8D57u) * c.word[2];
    c = {{uint32_t(b >> 32) ^ c.word[1] ^ key0, uint32_t(b), uint32_t(a >> 32) ^ c.word[3] ^ key1, uint32_t(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

__device__ inline double gumbel(uint32_t word) {
  return -log(-log((double(word) + 0.5) * 0x1p-32));
}

// To 2^-17 of the above, whatever the word: the inner logarithm has an error of 2^-21 relative to itself, the outer one
// few units in the last place of its result.
inline constexpr float kGumbelError = 0x1p-17f;
__device__ inline float near_gumbel(uint32_t word) {
  const float inner =
      word < 0x80000000u ? logf((float(word) + 0.5f) * 0x1p-32f) : log1pf(-(float(~word) + 0.5f) * 0x1p-32f);
  return -logf(-inner);
}

}  // namespace vqdm::cuda
