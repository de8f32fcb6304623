// Nearest code: for every feature z_i, the code e_k with the smallest (power) distance.
//
//   D[i][k]    = sum_j (z_ij - e_kj)^2 + bias_k     float64, j from left to right, no fused multiply-add
//   dist2[i]   = min_k D[i][k]                      rounded once to the output type
//   indices[i] = argmin_k D[i][k]                   ties go to the smallest k
//
// Codes with a NaN or Inf, or with bias NaN or +Inf, are never chosen while another exists; where none exists, and for
// a row with a NaN or Inf, the index is 0 and dist2 NaN. A D of Inf - Inf (a bias of -Inf) counts as +Inf.
//
// How: 1. prepare   codes are centred, scaled, rounded to fp32 or int16 and packed in panels (CodeSurvey, PackedCodes)
//      2. filter    scores of all codes, reduced on the fly to a few group minima per row (NearestCodeFilter)
//      3. certify   a bound on |score - D + const| says which groups can hold the winner (FilterPass); those alone are
//                   computed as D (ExactBatch). Rows for which the bound cannot tell (near ties, duplicates, codes far
//                   apart) are looked at again: all codes once more, first by a finer filter where they are many.
// The filter decides only what is not looked at, so the answer does not depend on instruction set, tiling or threads.
//
// Torch-free: plain pointers in, no allocation that grows with N x K.

#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "code_survey.h"
#include "code_table.h"
#include "exact_batch.h"
#include "filter_pass.h"
#include "packed_codes.h"

namespace vqdm::cpu {

class NearestCodeSearch {
 public:
  // e: [K, d] with K >= 1, d >= 1; bias: [K] or null data. Both must outlive the search.
  NearestCodeSearch(const Matrix& e, const Matrix& bias, int64_t K, int d);

  // Preparation, in this order: measure() all panels, settle(), pack() all panels, finish(). Ranges of panels may run
  // in parallel.
  int64_t num_panels() const { return survey_.num_panels(); }
  void measure(int64_t begin, int64_t end) { survey_.measure(begin, end); }
  void settle();
  void pack(int64_t begin, int64_t end) { packed_->pack(begin, end); }
  void finish() { packed_->settle(); }

  struct Workspace {  // of one thread
    FilterPass pass, finer_pass;
    std::vector<int64_t> rows, open;
    std::vector<Best> best;
  };

  // Rows [begin, end) of z [N, d], best at most max_block_rows() of them; ranges may run in parallel.
  int64_t max_block_rows() const;
  template <typename Out>
  void search(const Matrix& z, int64_t begin, int64_t end, Out* dist2, int64_t* indices, Workspace& work);

 private:
  void resolve_open(const Matrix& z, ExactBatch& batch, Workspace& work);
  const PackedCodes& finer_codes();

  CodeTable codes_;
  const NearestCodeFilter& filter_;
  CodeSurvey survey_;
  std::optional<PackedCodes> packed_, finer_;  // finer_: for filter_.finer, made when first needed
  std::once_flag finer_once_;
};

// For how many rows computing every D takes about as long as the preparation.
inline int64_t direct_rows(const Matrix& z, const Matrix& e) {
  return ExactBatch::reads_in_place(z, e) ? 6 : 3;
}

// The same answers by computing every D, without preparation. False, and nothing of use written, where a smallest D is
// not finite: then the answer depends on which codes may be chosen, and NearestCodeSearch tells.
template <typename Out>
bool nearest_code_directly(const Matrix& e, const Matrix& bias, int64_t K, int d, const Matrix& z, int64_t N,
                           Out* dist2, int64_t* indices);

}  // namespace vqdm::cpu
