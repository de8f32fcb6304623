#include "fma_peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "cpu_features.h"

namespace vqdm::cpu {
namespace {

struct Chains {  // enough independent chains to hide the latency of an addition
  void (*run)(int64_t rounds);
  double flops_per_round;
};

#if defined(VQDM_X86_KERNELS)

// Spelled out: a compiler would merge, vectorise again or spill the chains of a loop. 0 * 0 + 0 takes the time of any.
#define VQDM_FMA_LOOP(vec)                                                                                      \
  __asm__ volatile(                                                                                             \
      ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13\n"                                                  \
      "vxorps %%xmm\\i, %%xmm\\i, %%xmm\\i\n"                                                                   \
      ".endr\n"                                                                                                 \
      "1:\n"                                                                                                    \
      ".rept 2\n"                                                                                               \
      ".irp i, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13\n"                                                        \
      "vfmadd231ps %%" vec "0, %%" vec "1, %%" vec                                                              \
      "\\i\n"                                                                                                   \
      ".endr\n"                                                                                                 \
      ".endr\n"                                                                                                 \
      "dec %0\n"                                                                                                \
      "jnz 1b\n"                                                                                                \
      "vzeroupper\n"                                                                                            \
      : "+r"(rounds)                                                                                            \
      :                                                                                                         \
      : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
        "xmm12", "xmm13")

void run_avx512(int64_t rounds) {
  VQDM_FMA_LOOP("zmm");
}
void run_avx2(int64_t rounds) {
  VQDM_FMA_LOOP("ymm");
}

#endif

void run_baseline(int64_t rounds) {
  using Vec = float __attribute__((vector_size(16)));
  Vec sums[12] = {}, x = {1, 1, 1, 1}, y = {0.5f, 0.5f, 0.5f, 0.5f};
  for (; rounds > 0; --rounds) {
    __asm__ volatile("" : "+m"(x), "+m"(y));  // not to be hoisted or folded
#pragma GCC unroll 12
    for (auto& sum : sums) sum = sum * y + x;
  }
  __asm__ volatile("" : : "m"(sums));
}

Chains widest_chains() {
#if defined(VQDM_X86_KERNELS)
  if (cpu_features().avx512) return {run_avx512, 24 * 16 * 2};
  if (cpu_features().avx2_fma) return {run_avx2, 24 * 8 * 2};
#endif
  return {run_baseline, 12 * 4 * 2};
}

double best_gflops(double milliseconds) {
  using Clock = std::chrono::steady_clock;
  const Chains chains = widest_chains();
  constexpr int64_t kRounds = 20000;  // about 0.1 ms: short enough to fall between two interruptions
  double best = 0;
  const auto start = Clock::now();
  for (auto now = start; std::chrono::duration<double, std::milli>(now - start).count() < milliseconds;) {
    chains.run(kRounds);
    const auto end = Clock::now();
    best =
        std::max(best, chains.flops_per_round * kRounds / std::chrono::duration<double, std::nano>(end - now).count());
    now = end;
  }
  return best;
}

}  // namespace

double fma_peak_gflops(double milliseconds, int threads) {
  std::vector<double> best(std::max(threads, 1));
  std::vector<std::thread> others;
  for (size_t i = 1; i < best.size(); ++i) others.emplace_back([&, i] { best[i] = best_gflops(milliseconds); });
  best[0] = best_gflops(milliseconds);
  double sum = best[0];
  for (size_t i = 1; i < best.size(); ++i) {
    others[i - 1].join();
    sum += best[i];
  }
  return sum;
}

}  // namespace vqdm::cpu
