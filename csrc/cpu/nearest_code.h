// Nearest code: for every feature z_i, the code e_k with the smallest (power) distance.
//
//   D[i][k]    = sum_j (z_ij - e_kj)^2 + bias_k     float64, j from left to right, no fused multiply-add
//   dist2[i]   = min_k D[i][k]                      rounded once to the output type
//   indices[i] = argmin_k D[i][k]                   ties go to the smallest k
//
// Codes with a NaN or Inf, or with bias NaN or +Inf, are never chosen while another exists; where none exists, and for
// a row with a NaN or Inf, the index is 0 and dist2 NaN. A D of Inf - Inf (a bias of -Inf) counts as +Inf.
//
// How: 1. prepare   codes are centred, scaled by a power of two, rounded to fp32 and packed in panels
//      2. filter    fp32 scores of all codes, reduced on the fly to a few group minima per row (nearest_code_filter.h)
//      3. certify   a bound on |score - D + const| says which groups can hold the winner; those alone are computed as
//      D.
//                   Where the bound cannot tell (near ties, duplicates, absurd scales) the row is swept again in full.
// The filter decides only what is not looked at, so the answer does not depend on instruction set, tiling or threads.
//
// Torch-free: plain pointers in, no allocation that grows with N x K.

#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "matrix.h"
#include "nearest_code_filter.h"

namespace vqdm::cpu {

// The fastest filter this processor runs; VQDM_CPU_KERNEL=portable|avx2|avx512 asks for a slower one (for tests).
const NearestCodeFilter& nearest_code_filter();

class NearestCodeSearch {
 public:
  // e: [K, d] with K >= 1, d >= 1; bias: [K] or null data. Both must outlive the search.
  NearestCodeSearch(const Matrix& e, const Matrix& bias, int64_t K, int d);

  int64_t num_panels() const { return num_panels_; }
  int64_t max_block_rows() const;

  // Packs panels [begin, end); ranges may run in parallel. Then finish_packing() once, then search().
  void pack(int64_t begin, int64_t end);
  void finish_packing();

  // Rows [begin, end) of z [N, d], at most max_block_rows() of them; ranges may run in parallel.
  template <typename Out>
  void search(const Matrix& z, int64_t begin, int64_t end, Out* dist2, int64_t* indices);

 private:
  struct Best {
    double dist2;
    int64_t index;
  };
  struct Row {
    const double* values;  // [d] as given
    double* scratch;       // [4, d]
  };
  struct RowPlan;  // what is known of a row before the filter

  void choose_centre_and_scale();
  void set_outliers_apart();
  RowPlan plan_row(const double* z, double* centred, float* x) const;
  Best finish_row(Row z, const float* x, const RowPlan& plan, const LaneMinima& minima);
  void consider(Row z, int64_t first, int64_t last, Best& best) const;
  void sweep(Row z, const float* x, double threshold, Best& best);
  void find_duplicates();

  Matrix e_, bias_;
  int64_t K_;
  int d_;
  const NearestCodeFilter& filter_;
  int64_t num_panels_;
  std::vector<double> centre_;  // [d]
  double scale_ = 1.0;          // a power of two
  struct FreeDeleter {
    void operator()(float* p) const;
  };
  std::unique_ptr<float[], FreeDeleter> codes_;        // [num_panels, d, W]
  std::unique_ptr<float[], FreeDeleter> packed_bias_;  // [num_panels, W], +inf for codes never chosen
  std::vector<uint8_t> excluded_;                      // [K] invalid codes, later also duplicates of a lower code
  struct PanelFacts {
    double norm = 0, bias = 0, packed_bias = 0;  // maxima over the panel's valid codes
    bool any_valid = false, exact_only = false;
  };
  std::vector<PanelFacts> panel_facts_;
  PanelFacts facts_;  // over all panels but those of outliers
  // Panels with a code far outside, or with a huge bias. They would make the bound useless for all codes, so the filter
  // passes over them and every row computes them exactly.
  std::vector<int64_t> outlier_panels_;
  std::once_flag duplicates_once_;
};

}  // namespace vqdm::cpu
