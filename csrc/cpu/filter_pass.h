// A block of rows under one filter: which codes may be nearest, and which rows the filter leaves open.

#pragma once

#include <cstdint>
#include <vector>

#include "aligned_buffer.h"
#include "exact_batch.h"
#include "packed_codes.h"

namespace vqdm::cpu {

class FilterPass {
 public:
  // Rows of `rows` (indices into z), scanned against all codes.
  void run(const PackedCodes& packed, const Matrix& z, const std::vector<int64_t>& rows);

  int64_t size() const { return int64_t(plans_.size()); }
  const RowPlan& plan(int64_t i) const { return plans_[i]; }

  // The codes of row i that may be nearest go to the batch; false where they are more than the minima tell.
  bool certify(int64_t i, const CodeTable& codes, ExactBatch& batch, Best* best) const;

  // Looks at all codes again for rows that certify() left open, given by their place in this pass; best[n] is for
  // open[n].
  void sweep(const std::vector<int64_t>& open, CodeTable& codes, ExactBatch& batch, const std::vector<Best*>& best);

 private:
  int64_t tile_words() const { return packed_->steps() * kTileRows; }

  const PackedCodes* packed_ = nullptr;
  std::vector<int64_t> rows_;
  std::vector<RowPlan> plans_;
  AlignedBuffer<int32_t> words_;    // [tiles, steps, kTileRows]
  std::vector<float> factors_;      // [tiles, kTileRows]
  std::vector<LaneMinima> minima_;  // [tiles, kTileRows]
  std::vector<Selection> selections_;
  std::vector<double> scratch_;
  AlignedBuffer<int32_t> open_words_;
  std::vector<uint16_t> hits_;
};

}  // namespace vqdm::cpu
