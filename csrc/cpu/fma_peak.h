// The rate of fused multiply-adds on registers alone: what a kernel on this machine is measured against.

#pragma once

namespace vqdm::cpu {

// The fp32 GFLOP/s (two per multiply-add) of `threads` threads at once, the best of repeated short runs over about
// `milliseconds`. On the widest registers this processor has: AVX-512, AVX2, or those of the baseline.
double fma_peak_gflops(double milliseconds, int threads);

}  // namespace vqdm::cpu
