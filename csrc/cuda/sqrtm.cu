#include "jacobi.h"
#include "small_matmul.cuh"
#include "sqrtm.h"
#include "symmetric.h"
#include "workspace.h"

namespace vqdm::cuda {
namespace {

// root = (V diag(roots)) V^T, and V handed on in passing.
struct Root {
  int n;
  int64_t matrices;
  const double* columns;
  SqrtmParams out;
  static constexpr bool kLeftAlongK = false, kRightAlongK = false;

  __device__ double vector(int64_t matrix, int i, int k) const {
    return columns[(matrix * n + k) * int64_t(2) * n + n + i];
  }
  __device__ double left(int64_t matrix, int i, int k) const {
    return vector(matrix, i, k) * out.roots[matrix * n + k];
  }
  __device__ double right(int64_t matrix, int k, int j) const { return vector(matrix, j, k); }
  __device__ bool skips(int, int) const { return false; }
  __device__ void finish(int64_t matrix, int i, int j, double sum) const {
    const int64_t first = matrix * n * n, here = first + int64_t(i) * n + j, mirrored = first + int64_t(j) * n + i;
    out.vectors[here] = vector(matrix, i, j);
    if (i > j) return;
    if (out.wide) {
      double* root = static_cast<double*>(out.root);
      root[here] = root[mirrored] = sum;
    } else {
      float* root = static_cast<float*>(out.root);
      root[here] = root[mirrored] = float(sum);
    }
  }
};

struct Work {
  SymmetricParams symmetric;
  JacobiParams jacobi;
  char* jacobi_space;
};

Work work_of(const SqrtmParams& params, void* memory, int64_t& bytes) {
  Work w{};
  Workspace workspace(memory);
  const int64_t matrices = params.heads.count(), n = params.d;
  workspace.take(w.symmetric.columns, matrices * n * 2 * n);
  workspace.take(w.symmetric.shift, matrices);
  workspace.take(w.symmetric.root_scale, matrices);
  w.symmetric.a[0] = params.a;
  w.symmetric.sides = 1;
  w.symmetric.heads = params.heads;
  w.symmetric.n = params.d;
  w.jacobi.matrices = matrices;
  w.jacobi.n = params.d;
  w.jacobi.columns = w.symmetric.columns;
  w.jacobi.shift = w.symmetric.shift;
  w.jacobi.root_scale = w.symmetric.root_scale;
  w.jacobi.values = params.roots;
  workspace.take(w.jacobi.inverses, matrices * n);
  workspace.take(w.jacobi.largest, matrices);
  workspace.take(w.jacobi_space, jacobi_workspace_bytes(w.jacobi));
  bytes = workspace.bytes();
  return w;
}

}  // namespace

int64_t sqrtm_workspace_bytes(const SqrtmParams& params) {
  int64_t bytes = 0;
  work_of(params, nullptr, bytes);
  return bytes;
}

cudaError_t sqrtm(const SqrtmParams& params, void* workspace, cudaStream_t stream) {
  int64_t bytes = 0;
  const Work w = work_of(params, workspace, bytes);
  cudaError_t error = load_symmetric(w.symmetric, stream);
  if (error == cudaSuccess) error = jacobi(w.jacobi, w.jacobi_space, stream);
  const Root root{params.d, params.heads.count(), w.jacobi.columns, params};
  if (error == cudaSuccess) error = multiply_all(root, stream);
  return error;
}

}  // namespace vqdm::cuda
