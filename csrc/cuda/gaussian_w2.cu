#include <math.h>

#include <algorithm>
#include <limits>

#include "gaussian_w2.h"
#include "jacobi.h"
#include "operand.cuh"
#include "reduce.cuh"
#include "small_matmul.cuh"
#include "symmetric.h"
#include "workspace.h"

namespace vqdm::cuda {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kLargestFinite = std::numeric_limits<double>::max();

// Matrix side * items + item is that of covariance `side` of an item; all matrices are [n, n], by rows.
struct Work {
  int n;
  int64_t items;
  SymmetricParams symmetric;
  JacobiParams eigen;     // of 2 items: V and roots r of the covariances
  JacobiParams singular;  // of items: M
  double* Q;              // [items]
  double* W;              // [items]
  double* Y;              // [2 items]
  double* VT;             // [2 items] V T
  char* jacobi_space;

  // Entry i of eigenvector k.
  __device__ double vector(int64_t matrix, int i, int k) const {
    return eigen.columns[(matrix * n + k) * int64_t(2) * n + n + i];
  }
  // Entry i of left singular vector k, times sigma_k; of right singular vector k.
  __device__ double left_singular(int64_t item, int i, int k) const {
    return singular.columns[(item * n + k) * int64_t(2) * n + i];
  }
  __device__ double right_singular(int64_t item, int i, int k) const {
    return singular.columns[(item * n + k) * int64_t(2) * n + n + i];
  }
  __device__ bool bad(int64_t item) const {  // NaN or Inf in a covariance
    const double product = symmetric.root_scale[item] * symmetric.root_scale[items + item];
    return product != product;
  }
};

struct Product : Work {
  int64_t matrices;
  __device__ bool skips(int, int) const { return false; }
};

// Q = V1^T V2, and from it M, brought to entries below 1: its singular values count only relative to each other.
struct Overlap : Product {
  static constexpr bool kLeftAlongK = true, kRightAlongK = true;
  __device__ double left(int64_t item, int i, int k) const { return vector(item, k, i); }
  __device__ double right(int64_t item, int k, int j) const { return vector(items + item, k, j); }
  __device__ void finish(int64_t item, int i, int j, double sum) const {
    Q[(item * n + i) * int64_t(n) + j] = sum;
    const double most1 = eigen.largest[item], most2 = eigen.largest[items + item];
    const bool zero = bad(item) || most1 == 0 || most2 == 0;
    const double r1 = eigen.values[item * n + i], r2 = eigen.values[(items + item) * n + j];
    singular.columns[(item * n + j) * int64_t(2) * n + i] = zero ? 0 : r1 / most1 * sum * (r2 / most2);
  }
};

struct PartialIsometry : Product {
  static constexpr bool kLeftAlongK = false, kRightAlongK = false;
  __device__ double left(int64_t item, int i, int k) const {
    return left_singular(item, i, k) * singular.inverses[item * n + k];
  }
  __device__ double right(int64_t item, int k, int j) const {
    return singular.inverses[item * n + k] == 0 ? 0 : right_singular(item, j, k);
  }
  __device__ void finish(int64_t item, int i, int j, double sum) const { W[(item * n + i) * int64_t(n) + j] = sum; }
};

// Y1 = Q diag(r2) W^T, Y2 = Q^T diag(r1) W.
struct Transported : Product {
  static constexpr bool kLeftAlongK = true, kRightAlongK = true;
  __device__ double left(int64_t matrix, int i, int k) const {
    if (matrix < items) return Q[(matrix * n + i) * int64_t(n) + k];
    return Q[((matrix - items) * n + k) * int64_t(n) + i];
  }
  __device__ double right(int64_t matrix, int k, int j) const {
    if (matrix < items) return eigen.values[(items + matrix) * n + k] * W[(matrix * n + j) * int64_t(n) + k];
    return eigen.values[(matrix - items) * n + k] * W[((matrix - items) * n + k) * int64_t(n) + j];
  }
  __device__ void finish(int64_t matrix, int i, int j, double sum) const { Y[(matrix * n + i) * int64_t(n) + j] = sum; }
};

struct TransportLeft : Product {  // V T
  static constexpr bool kLeftAlongK = false, kRightAlongK = false;
  __device__ double left(int64_t matrix, int i, int k) const { return vector(matrix, i, k); }
  __device__ double right(int64_t matrix, int k, int j) const {
    const double* y = Y + matrix * n * n;
    const double inverse_k = eigen.inverses[matrix * n + k], inverse_j = eigen.inverses[matrix * n + j];
    const double sum = y[int64_t(k) * n + j] * inverse_j + y[int64_t(j) * n + k] * inverse_k;
    return inverse_k != 0 && inverse_j != 0 ? sum / 2 : sum;
  }
  __device__ void finish(int64_t matrix, int i, int j, double sum) const {
    VT[(matrix * n + i) * int64_t(n) + j] = sum;
  }
};

struct Gradient : Product {  // I - (V T) V^T, its upper triangle mirrored
  double* grad[2];
  static constexpr bool kLeftAlongK = true, kRightAlongK = false;
  __device__ double left(int64_t matrix, int i, int k) const { return VT[(matrix * n + i) * int64_t(n) + k]; }
  __device__ double right(int64_t matrix, int k, int j) const { return vector(matrix, j, k); }
  __device__ bool skips(int first_row, int first_col) const { return first_row > first_col; }
  __device__ void finish(int64_t matrix, int i, int j, double sum) const {
    if (i > j) return;
    const int64_t item = matrix % items;
    double* out = grad[matrix / items] + item * n * n;
    const double value = bad(item) ? kNaN : (i == j ? 1 : 0) - sum;
    out[int64_t(i) * n + j] = out[int64_t(j) * n + i] = value;
  }
};

constexpr int kValueThreads = 512;

// One block per item.
__global__ void write_value(Work w, GaussianW2Params p) {
  simt::SharedMemory memory;
  const auto partial = memory.take<double>(kMostWarps);
  const int n = w.n;
  const int64_t item = simt::block_index();
  const double *y = w.Y + item * n * n, *r1 = w.eigen.values + item * n, *r2 = w.eigen.values + (w.items + item) * n;
  double sum = 0;
  for (int e = simt::thread_index(); e < n * n; e += kValueThreads) {
    const int i = e / n, j = e % n;
    const double difference = (i == j ? r1[i] : 0) - y[e];
    sum = fma(difference, difference, sum);
    // The same e, taken for entry j of right singular vector i.
    const double left_over = w.singular.inverses[item * n + i] == 0 ? r2[j] * w.right_singular(item, j, i) : 0;
    sum = fma(left_over, left_over, sum);
  }
  const int64_t start1 = head_offset(p.heads, p.mean1, item), start2 = head_offset(p.heads, p.mean2, item);
  bool finite = !w.bad(item);
  for (int i = simt::thread_index(); i < n; i += kValueThreads) {
    const double m1 = load(p.mean1, start1 + i * p.mean1.row_stride);
    const double m2 = load(p.mean2, start2 + i * p.mean2.row_stride);
    finite = finite && fabs(m1) <= kLargestFinite && fabs(m2) <= kLargestFinite;
    sum = fma(m1 - m2, m1 - m2, sum);
  }
  finite = block_max(finite ? 0 : 1, partial) == 0;
  sum = block_sum(sum, partial);
  if (simt::thread_index() != 0) return;
  const double w2 = finite ? sum : kNaN;
  if (p.wide) {
    static_cast<double*>(p.w2)[item] = w2;
  } else {
    static_cast<float*>(p.w2)[item] = float(w2);
  }
}

Work work_of(const GaussianW2Params& params, void* memory, int64_t& bytes) {
  Work w{};
  Workspace workspace(memory);
  w.n = params.d;
  w.items = params.heads.count();
  const int64_t n = w.n, numbers = w.items * n * n;
  w.symmetric.a[0] = params.cov[0];
  w.symmetric.a[1] = params.cov[1];
  w.symmetric.sides = 2;
  w.symmetric.heads = params.heads;
  w.symmetric.n = w.n;
  workspace.take(w.symmetric.columns, 2 * 2 * numbers);
  workspace.take(w.symmetric.shift, 2 * w.items);
  workspace.take(w.symmetric.root_scale, 2 * w.items);
  w.eigen.columns = w.symmetric.columns;
  w.eigen.shift = w.symmetric.shift;
  w.eigen.root_scale = w.symmetric.root_scale;
  workspace.take(w.singular.columns, 2 * numbers);
  for (JacobiParams* jacobi : {&w.eigen, &w.singular}) {
    jacobi->n = w.n;
    jacobi->matrices = jacobi == &w.eigen ? 2 * w.items : w.items;
    workspace.take(jacobi->values, jacobi->matrices * n);
    workspace.take(jacobi->inverses, jacobi->matrices * n);
    workspace.take(jacobi->largest, jacobi->matrices);
  }
  workspace.take(w.Q, numbers);
  workspace.take(w.W, numbers);
  workspace.take(w.Y, 2 * numbers);
  w.VT = w.singular.columns;  // which have been used by then
  workspace.take(w.jacobi_space, std::max(jacobi_workspace_bytes(w.eigen), jacobi_workspace_bytes(w.singular)));
  bytes = workspace.bytes();
  return w;
}

}  // namespace

int64_t gaussian_w2_workspace_bytes(const GaussianW2Params& params) {
  int64_t bytes = 0;
  work_of(params, nullptr, bytes);
  return bytes;
}

cudaError_t gaussian_w2(const GaussianW2Params& params, void* workspace, cudaStream_t stream) {
  int64_t bytes = 0;
  const Work w = work_of(params, workspace, bytes);
  const bool gradients = params.grad[0] != nullptr;
  cudaError_t error = load_symmetric(w.symmetric, stream);
  const auto then = [&](auto enqueue) {
    if (error == cudaSuccess) error = enqueue();
  };
  const auto product = [&]<typename Problem>(Problem problem, int64_t matrices) {
    static_cast<Work&>(problem) = w;
    problem.matrices = matrices;
    then([&] { return multiply_all(problem, stream); });
  };
  then([&] { return jacobi(w.eigen, w.jacobi_space, stream); });
  product(Overlap{}, w.items);
  then([&] { return jacobi(w.singular, w.jacobi_space, stream); });
  product(PartialIsometry{}, w.items);
  product(Transported{}, gradients ? 2 * w.items : w.items);
  then([&] {
    const simt::LaunchShape shape{w.items, kValueThreads, kMostWarps * int(sizeof(double))};
    return simt::launch(write_value, shape, stream, w, params);
  });
  if (gradients) {
    product(TransportLeft{}, 2 * w.items);
    Gradient gradient{};
    gradient.grad[0] = params.grad[0];
    gradient.grad[1] = params.grad[1];
    product(gradient, 2 * w.items);
  }
  return error;
}

}  // namespace vqdm::cuda
