#include "code_survey.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "default_float_mode.h"

namespace vqdm::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kCentreSample = 256;  // codes looked at for centre and scale

}  // namespace

void CodeSurvey::Facts::merge(const Facts& other) {
  norm = std::max(norm, other.norm);
  largest = std::max(largest, other.largest);
  bias = std::max(bias, other.bias);
  packed_bias = std::max(packed_bias, other.packed_bias);
  any_valid |= other.any_valid;
  exact_only |= other.exact_only;
}

CodeSurvey::CodeSurvey(CodeTable& codes, const NearestCodeFilter& filter)
    : codes_(codes),
      filter_(filter),
      num_panels_((codes.K + panel_width() - 1) / panel_width()),
      bias_(num_panels_ * panel_width()),
      panels_(num_panels_),
      outlier_(num_panels_, 0) {
  choose_centre_and_scale();
}

void CodeSurvey::choose_centre_and_scale() {
  // Any centre and scale give right answers; good ones make the bound tight. A sample finds good ones.
  const DefaultFloatMode mode;
  const int d = codes_.d;
  const int64_t step = (codes_.K + kCentreSample - 1) / kCentreSample;
  std::vector<double> code(padded(d)), zeros(padded(d), 0.0);
  centre_ = zeros;
  int64_t count = 0;
  for (int64_t k = 0; k < codes_.K; k += step) {
    codes_.e.load(k, d, code.data());
    if (!all_finite(code.data(), d)) continue;
    ++count;
    for (int j = 0; j < d; ++j) centre_[j] += code[j];
  }
  for (double& value : centre_) value /= double(std::max<int64_t>(count, 1));
  if (!all_finite(centre_.data(), d)) centre_ = zeros;
  double largest = 0;
  for (int64_t k = 0; k < codes_.K; k += step) {
    const RowSize size = centre(codes_.e, k, code.data());  // with a scale of one still
    if (size.norm2 < kInfinity) largest = std::max(largest, size.largest);
  }
  // Limited to 2^400 so that the scale's square and its inverse stay far inside float64.
  if (largest > 0 && std::isfinite(largest)) scale_ = std::ldexp(1.0, -std::clamp(std::ilogb(largest) + 1, -400, 400));
}

RowSize CodeSurvey::centre(const Matrix& m, int64_t i, double* out) const {
  const int d = codes_.d;
  if (m.dtype == DType::kFloat32 && m.col_stride == 1) {
    return filter_.rows.centre_floats(m.row<float>(i), centre_.data(), scale_, d, out);
  }
  m.load(i, d, out);
  return filter_.rows.centre_doubles(out, centre_.data(), scale_, d, out);
}

void CodeSurvey::measure(int64_t begin, int64_t end) {
  const DefaultFloatMode mode;
  const int W = panel_width(), d = codes_.d;
  std::vector<double> code(padded(d));
  for (int64_t p = begin; p < end; ++p) {
    float* panel_bias = bias_.data() + p * W;
    Facts facts;
    double norm2 = 0;
    for (int c = 0; c < W; ++c) {
      const int64_t k = p * W + c;
      panel_bias[slot(c)] = float(kInfinity);
      if (k >= codes_.K) continue;
      const RowSize size = centre(codes_.e, k, code.data());
      const double bias = codes_.bias_of(k);
      bool valid = !std::isnan(bias) && bias != kInfinity;
      if (valid && !(size.norm2 < kInfinity)) {  // a NaN or Inf, or the norm alone overflows
        codes_.e.load(k, d, code.data());
        valid = all_finite(code.data(), d);
      }
      if (!valid) {
        codes_.exclude(k);
        continue;
      }
      const double scaled_bias = bias * scale_ * scale_, sum = size.norm2 + scaled_bias;
      panel_bias[slot(c)] = float(sum);
      const bool bounded = size.norm2 < 0x1p100 && std::abs(scaled_bias) < 0x1p100;
      facts.any_valid = true;
      facts.exact_only |= !bounded;
      norm2 = std::max(norm2, size.norm2);
      facts.largest = std::max(facts.largest, size.largest);
      facts.bias = std::max(facts.bias, std::abs(scaled_bias));
      facts.packed_bias = std::max(facts.packed_bias, std::abs(sum));
    }
    facts.norm = std::sqrt(norm2);
    panels_[p] = facts;
  }
}

void CodeSurvey::settle() {
  const auto reach = [](const Facts& panel) { return std::max(panel.norm, std::sqrt(panel.bias)); };
  std::vector<double> reaches;
  reaches.reserve(num_panels_);
  for (const Facts& panel : panels_) reaches.push_back(panel.exact_only ? kInfinity : reach(panel));
  const auto middle = reaches.begin() + (num_panels_ - 1) / 2;
  std::nth_element(reaches.begin(), middle, reaches.end());
  const double most = 8 * *middle;
  for (int64_t p = 0; p < num_panels_; ++p) {
    if (panels_[p].exact_only || reach(panels_[p]) > most) outlier_panels_.push_back(p);
  }
  if (int64_t(outlier_panels_.size()) > num_panels_ / 8) outlier_panels_.clear();  // then they are no exception
  for (int64_t p : outlier_panels_) {
    outlier_[p] = 1;
    std::fill_n(bias_.data() + p * panel_width(), panel_width(), float(kInfinity));
  }
  for (int64_t p = 0; p < num_panels_; ++p) {
    any_valid_ |= panels_[p].any_valid;
    if (!outlier_[p]) facts_.merge(panels_[p]);
  }
}

}  // namespace vqdm::cpu
