#include "packed_codes.h"

#include <algorithm>
#include <cmath>

#include "default_float_mode.h"

namespace vqdm::cpu {
namespace {

constexpr double kMaxRoundings = 0x1p16;  // up to here second-order terms stay within the bound's 1 %

}  // namespace

PackedCodes::PackedCodes(const CodeTable& codes, const CodeSurvey& survey, const NearestCodeFilter& filter)
    : codes_(codes),
      survey_(survey),
      filter_(filter),
      coder_(filter.format, codes.d),
      unit_(coder_.code_unit(survey.facts().norm, survey.facts().largest)),
      words_(survey.num_panels() * panel_words()),
      residuals_(survey.num_panels(), 0.0) {}

void PackedCodes::pack(int64_t begin, int64_t end) {
  const DefaultFloatMode mode;
  const int W = filter_.panel_width();
  std::vector<double> centred(codes_.d);
  std::vector<int32_t> scratch(codes_.d + 1);
  for (int64_t p = begin; p < end; ++p) {
    int32_t* panel = words_.data() + p * panel_words();
    if (survey_.is_outlier(p) || survey_.facts().exact_only) {
      std::fill_n(panel, panel_words(), 0);
      continue;
    }
    for (int c = 0; c < W; ++c) {
      const int64_t k = p * W + c;
      int32_t* words = panel + survey_.slot(c);
      if (k >= codes_.K || codes_.excluded(k)) {
        for (int64_t j = 0; j < steps(); ++j) words[j * W] = 0;
        continue;
      }
      const double norm = std::sqrt(survey_.centre(codes_.e, k, centred.data()).norm2);
      residuals_[p] = std::max(residuals_[p], coder_.encode(centred.data(), unit_, norm, words, W, scratch.data()));
    }
  }
}

void PackedCodes::settle() {
  residual_ = *std::max_element(residuals_.begin(), residuals_.end());
}

RowPlan PackedCodes::encode_row(const Matrix& z, int64_t i, int32_t* words, float* factor, double* scratch) const {
  const int d = codes_.d;
  const CodeSurvey::Facts& facts = survey_.facts();
  const auto set_zero = [&] {
    for (int64_t j = 0; j < steps(); ++j) words[j * kTileRows] = 0;
    *factor = 0;
  };
  RowPlan plan;
  const RowSize size = survey_.centre(z, i, scratch);
  plan.valid = survey_.any_valid();
  if (plan.valid && !(size.norm2 < std::numeric_limits<double>::infinity())) {
    z.load(i, d, scratch);
    plan.valid = all_finite(scratch, d);
  }
  const double norm = std::sqrt(size.norm2), reach = norm + facts.norm;
  plan.exact_only = facts.exact_only || coder_.roundings() > kMaxRoundings || !(norm < 0x1p100) ||
                    !(reach / survey_.scale() < 0x1p500) || !(facts.packed_bias + 2 * norm * facts.norm < 0x1p100);
  if (!plan.valid || plan.exact_only) {
    set_zero();
    return plan;
  }
  // In units of the scaled, centred data, S_k = ||e'_k||^2 + bias_k - 2 z'.e'_k is D less a constant of the row.
  //   |score_k - S_k| <= error: words stand for z^ and e^, and z'.e' - z^.e^ = (z' - z^).e' + z^.(e' - e^), by
  //     Cauchy-Schwarz with the norms of what rounding left; then the roundings of the score, each at most 2^-24 of
  //     the largest partial sum; 1 % for second-order terms. `tiny` covers results below the smallest normal number.
  //   |D_k - its exact value| <= (d + 4) 2^-53 (reach^2 + |bias|), and twice that for the float64 centring above.
  const double unit = coder_.row_unit(norm, size.largest);
  const double residual = coder_.encode(scratch, unit, norm, words, kTileRows, reinterpret_cast<int32_t*>(scratch + d));
  *factor = float(-2 / (unit * unit_));
  const double row = norm + residual, code = facts.norm + residual_;  // bounds on the norms of z^ and e^
  const double tiny = (d + 2) * 0x1p-118 * (1 + 2 * reach);
  const double error = 1.01 * (2 * (residual * facts.norm + row * residual_) +
                               coder_.roundings() * 0x1p-24 * (facts.packed_bias + 2 * row * code)) +
                       tiny;
  const double rounding = (d + 8) * 0x1p-52 * (reach * reach + facts.bias);
  plan.margin = std::nextafter(float(2 * (error + rounding)), std::numeric_limits<float>::infinity());
  return plan;
}

}  // namespace vqdm::cpu
