// torch.ops.vqdm.nearest_code: schema and CPU implementation. Formula and promises: csrc/cpu/nearest_code.h.

#include "../cpu/nearest_code.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu_matrix.h"
#include "nearest_code_shapes.h"

namespace vqdm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrainElements = 16384;

template <typename Out>
void nearest_code_into(const Tensor& z, const Tensor& e, const std::optional<Tensor>& bias,
                       const NearestCodeShapes& shapes, Out* dist2, int64_t* indices) {
  const auto codes_at = [&](int64_t h) { return cpu_matrix_at(e, shapes.e_offset[h]); };
  const auto bias_at = [&](int64_t h) { return bias ? cpu_column_at(*bias, shapes.bias_offset[h]) : cpu::Matrix{}; };
  const auto rows_at = [&](int64_t h) { return cpu_matrix_at(z, shapes.z_offset[h]); };
  const int64_t threads = torch::stable::get_num_threads();

  // A few rows cost less than the preparation of a codebook, which threads share.
  const int64_t preparing = std::clamp<int64_t>(shapes.K * shapes.d / kGrainElements, 1, threads);
  if (shapes.num_heads * shapes.N * preparing <= cpu::direct_rows(rows_at(0), codes_at(0))) {
    bool done = true;
    for (int64_t h = 0; done && h < shapes.num_heads; ++h) {
      done = cpu::nearest_code_directly(codes_at(h), bias_at(h), shapes.K, shapes.d, rows_at(h), shapes.N,
                                        dist2 + h * shapes.N, indices + h * shapes.N);
    }
    if (done) return;
  }

  // Heads that share codes and bias share their packing: a codebook [K, d] under z [B, N, d] is packed once.
  std::map<std::pair<int64_t, int64_t>, size_t> seen;
  std::vector<std::unique_ptr<cpu::NearestCodeSearch>> searches;
  std::vector<cpu::NearestCodeSearch*> search_of_head;
  for (int64_t h = 0; h < shapes.num_heads; ++h) {
    const auto [found, is_new] = seen.try_emplace({shapes.e_offset[h], shapes.bias_offset[h]}, searches.size());
    if (is_new) {
      searches.push_back(std::make_unique<cpu::NearestCodeSearch>(codes_at(h), bias_at(h), shapes.K, shapes.d));
    }
    search_of_head.push_back(searches[found->second].get());
  }
  // Panels to a thread at a time: what is less than that is not worth waking one for.
  const int64_t grain = 1 + kGrainElements / (int64_t(shapes.d) * 64);
  for (auto& search : searches) {
    const int64_t panels = search->num_panels();
    torch::stable::parallel_for(0, panels, grain, [&](int64_t begin, int64_t end) { search->measure(begin, end); });
    search->settle();
    torch::stable::parallel_for(0, panels, grain, [&](int64_t begin, int64_t end) { search->pack(begin, end); });
    search->finish();
  }

  // Rows are independent, so how they are cut into blocks, and who takes which, changes the time alone.
  const int64_t most = searches[0]->max_block_rows();
  int64_t blocks = (shapes.N + most - 1) / most;
  if (shapes.num_heads < threads) blocks = (blocks + threads - 1) / threads * threads;
  const int64_t tiles = (shapes.N + cpu::kTileRows - 1) / cpu::kTileRows;
  const int64_t rows = (tiles + blocks - 1) / blocks * cpu::kTileRows;
  blocks = (shapes.N + rows - 1) / rows;
  const int64_t jobs = shapes.num_heads * blocks;
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(threads, jobs), 1, [&](int64_t, int64_t) {
    cpu::NearestCodeSearch::Workspace work;
    for (int64_t job = next++; job < jobs; job = next++) {
      const int64_t h = job / blocks, first = job % blocks * rows;
      search_of_head[h]->search(rows_at(h), first, std::min(first + rows, shapes.N), dist2 + h * shapes.N,
                                indices + h * shapes.N, work);
    }
  });
}

std::tuple<Tensor, Tensor> nearest_code(const Tensor& z, const Tensor& e, std::optional<Tensor> bias) {
  const NearestCodeShapes shapes(z, e, bias);
  const bool wide = cpu_dtype_of(z) == cpu::DType::kFloat64 || cpu_dtype_of(e) == cpu::DType::kFloat64 ||
                    (bias && cpu_dtype_of(*bias) == cpu::DType::kFloat64);
  const Tensor dist2 = torch::stable::new_empty(z, shapes.output_sizes, wide ? ScalarType::Double : ScalarType::Float);
  const Tensor indices = torch::stable::new_empty(z, shapes.output_sizes, ScalarType::Long);
  if (dist2.numel() > 0) {
    auto* out = static_cast<int64_t*>(indices.mutable_data_ptr());
    if (wide) {
      nearest_code_into(z, e, bias, shapes, static_cast<double*>(dist2.mutable_data_ptr()), out);
    } else {
      nearest_code_into(z, e, bias, shapes, static_cast<float*>(dist2.mutable_data_ptr()), out);
    }
  }
  return {dist2, indices};
}

}  // namespace
}  // namespace vqdm

STABLE_TORCH_LIBRARY_FRAGMENT(vqdm, m) {
  m.def(vqdm::kNearestCodeSchema);
}

STABLE_TORCH_LIBRARY_IMPL(vqdm, CPU, m) {
  m.impl("nearest_code", TORCH_BOX(&vqdm::nearest_code));
}
