// The codes of a survey in the words of one filter, and the bound on that filter's error.

#pragma once

#include <cstdint>
#include <vector>

#include "aligned_buffer.h"
#include "code_survey.h"
#include "nearest_code_filter.h"
#include "nearest_code_format.h"

namespace vqdm::cpu {

// What is known of a row before the filter.
struct RowPlan {
  bool valid = false;       // finite, and there is a code to choose
  bool exact_only = false;  // magnitudes outside what the filter can bound
  float margin = 0;         // a code whose score exceeds the smallest by more than this cannot win
  double norm2 = 0;         // of the row, centred and scaled
};

class PackedCodes {
 public:
  PackedCodes(const CodeTable& codes, const CodeSurvey& survey, const NearestCodeFilter& filter);

  // Packs panels [begin, end) of a settled survey; ranges may run in parallel. Then settle() once.
  void pack(int64_t begin, int64_t end);
  void settle();

  // Writes `count` rows of z, at most kTileRows, to the columns of a tile: words [steps][kTileRows], factors
  // [kTileRows]. Missing columns are zero. scratch: 2 kTileRows padded(d) doubles.
  void encode_tile(const Matrix& z, const int64_t* rows, int count, int32_t* words, float* factors, RowPlan* plans,
                   double* scratch) const;

  // Whether every packed code is farther than dist2, the distance of one that is not; limit is the smallest score of
  // the row plus its margin.
  bool all_beyond(const RowPlan& plan, float limit, double dist2) const;

  const NearestCodeFilter& filter() const { return filter_; }
  int d() const { return codes_.d; }
  int64_t num_panels() const { return survey_.num_panels(); }
  int64_t steps() const { return coder_.steps(); }
  int64_t panel_words() const { return steps() * filter_.panel_width(); }
  CodePanels panels() const { return {words_.data(), survey_.bias(), steps()}; }

 private:
  const CodeTable& codes_;
  const CodeSurvey& survey_;
  const NearestCodeFilter& filter_;
  const WordCoder coder_;
  const double inverse_unit_;
  AlignedBuffer<int32_t> words_;    // [num_panels, steps, W]
  std::vector<double> residuals2_;  // [num_panels] maxima of ||e' * unit - what its words stand for||^2
  double residual_ = 0;
};

}  // namespace vqdm::cpu
