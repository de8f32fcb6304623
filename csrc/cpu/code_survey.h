// What is known of the codes before a filter packs them: a centre, a scale, how large they are, which of them are so
// far out that they are better computed exactly for every row than allowed to spoil the filter's bound for all others.
//
// From here on a value x stands for (x - centre) * scale. Distances between codes and rows do not mind, and the
// filter's error, which grows with magnitudes, becomes small. The scale is a power of two.

#pragma once

#include <cstdint>
#include <vector>

#include "aligned_buffer.h"
#include "code_table.h"
#include "nearest_code_filter.h"

namespace vqdm::cpu {

class CodeSurvey {
 public:
  struct Facts {
    double norm = 0, largest = 0, bias = 0, packed_bias = 0;  // maxima over valid codes
    bool any_valid = false, exact_only = false;
    void merge(const Facts& other);
  };

  CodeSurvey(CodeTable& codes, const NearestCodeFilter& filter);

  // Measures panels [begin, end); ranges may run in parallel. Then settle() once.
  void measure(int64_t begin, int64_t end);
  void settle();

  int panel_width() const { return filter_.panel_width(); }
  int64_t num_panels() const { return num_panels_; }
  // Where in its panel a code stands: `vectors` consecutive codes share a lane.
  int slot(int code) const { return code % filter_.vectors * filter_.lanes + code / filter_.vectors; }

  // Row i of m (rows or codes), centred and scaled, into out [padded(d)].
  RowSize centre(const Matrix& m, int64_t i, double* out) const;
  double scale() const { return scale_; }

  bool is_outlier(int64_t panel) const { return outlier_[panel]; }
  const std::vector<int64_t>& outlier_panels() const { return outlier_panels_; }
  const Facts& facts() const { return facts_; }       // over all panels but those of outliers
  const float* bias() const { return bias_.data(); }  // [num_panels, W]: ||e'||^2 + bias, +inf for a code not to find
  bool any_valid() const { return any_valid_; }

 private:
  void choose_centre_and_scale();

  CodeTable& codes_;
  const NearestCodeFilter& filter_;
  const int64_t num_panels_;
  std::vector<double> centre_;  // [padded(d)]
  double scale_ = 1.0;
  AlignedBuffer<float> bias_;
  std::vector<Facts> panels_;
  std::vector<uint8_t> outlier_;
  std::vector<int64_t> outlier_panels_;
  Facts facts_;
  bool any_valid_ = false;
};

}  // namespace vqdm::cpu
