// The plain kernel: one block per row, the definition computed as it stands, a fixed reduction tree.
//
// It runs at the rate of float64 CUDA cores and reads the codebook from L2 once per row. What it has is the exact
// answer on every architecture; a faster path has to agree with it bit for bit.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>

#include <algorithm>

#include "nearest_code.h"

namespace vqdm::cuda {
namespace {

constexpr int kBlockSize = 256;

__device__ double widen(double x) {
  return x;
}
__device__ double widen(float x) {
  return double(x);
}
__device__ double widen(__half x) {
  return double(__half2float(x));
}
__device__ double widen(__nv_bfloat16 x) {
  return double(__bfloat162float(x));
}

struct Best {
  double dist2;
  int64_t index;  // -1 while nothing was seen
};

// The lower index wins a tie, so the order of merging does not matter.
__device__ Best better(Best a, Best b) {
  if (b.index < 0) return a;
  if (a.index < 0) return b;
  if (b.dist2 < a.dist2 || (b.dist2 == a.dist2 && b.index < a.index)) return b;
  return a;
}

template <typename TZ, typename TE>
__global__ void nearest_code_kernel(NearestCodeParams<TZ, TE> p) {
  for (int64_t i = blockIdx.x; i < p.N; i += gridDim.x) {
    const TZ* z = p.z + i * p.z_row_stride;
    Best best{0.0, -1};
    for (int64_t k = threadIdx.x; k < p.K; k += kBlockSize) {
      const TE* e = p.e + k * p.e_row_stride;
      const double bias = p.bias == nullptr ? 0.0 : p.bias[k * p.bias_stride];
      bool valid = !isnan(bias) && bias != CUDART_INF;
      double sum = 0.0;
      for (int j = 0; j < p.d; ++j) {
        const double code = widen(e[j * p.e_col_stride]);
        valid = valid && isfinite(code);
        const double difference = __dsub_rn(widen(z[j * p.z_col_stride]), code);
        sum = __dadd_rn(sum, __dmul_rn(difference, difference));
      }
      const double total = __dadd_rn(sum, bias);  // Inf - Inf, by a bias of -Inf, counts as +Inf
      if (valid) best = better(best, Best{isnan(total) ? CUDART_INF : total, k});
    }

    __shared__ Best shared[kBlockSize];
    __shared__ int row_is_finite;
    if (threadIdx.x == 0) row_is_finite = 1;
    __syncthreads();
    for (int j = threadIdx.x; j < p.d; j += kBlockSize) {
      if (!isfinite(widen(z[j * p.z_col_stride]))) row_is_finite = 0;
    }
    shared[threadIdx.x] = best;
    __syncthreads();
    for (int half = kBlockSize / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) shared[threadIdx.x] = better(shared[threadIdx.x], shared[threadIdx.x + half]);
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      best = row_is_finite ? shared[0] : Best{0.0, -1};
      const double dist2 = best.index < 0 ? CUDART_NAN : best.dist2;
      if (p.wide) {
        static_cast<double*>(p.dist2)[i] = dist2;
      } else {
        static_cast<float*>(p.dist2)[i] = float(dist2);
      }
      p.indices[i] = best.index < 0 ? 0 : best.index;
    }
    __syncthreads();  // shared memory is free for the next row
  }
}

}  // namespace

template <typename TZ, typename TE>
cudaError_t nearest_code(const NearestCodeParams<TZ, TE>& params, cudaStream_t stream) {
  if (params.N == 0) return cudaSuccess;
  const int64_t blocks = std::min<int64_t>(params.N, int64_t(1) << 20);
  nearest_code_kernel<<<int(blocks), kBlockSize, 0, stream>>>(params);
  return cudaGetLastError();
}

#define VQDM_INSTANTIATE(TZ, TE) \
  template cudaError_t nearest_code<TZ, TE>(const NearestCodeParams<TZ, TE>&, cudaStream_t);
#define VQDM_INSTANTIATE_ALL(TZ) \
  VQDM_INSTANTIATE(TZ, double)   \
  VQDM_INSTANTIATE(TZ, float)    \
  VQDM_INSTANTIATE(TZ, __half)   \
  VQDM_INSTANTIATE(TZ, __nv_bfloat16)
VQDM_INSTANTIATE_ALL(double)
VQDM_INSTANTIATE_ALL(float)
VQDM_INSTANTIATE_ALL(__half)
VQDM_INSTANTIATE_ALL(__nv_bfloat16)

}  // namespace vqdm::cuda
