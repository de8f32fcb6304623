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
      coder_(filter, codes.d),
      inverse_unit_(coder_.inverse_code_unit(survey.facts().norm, survey.facts().largest)),
      words_(survey.num_panels() * panel_words()),
      residuals2_(survey.num_panels(), 0.0) {}

void PackedCodes::pack(int64_t begin, int64_t end) {
  const DefaultFloatMode mode;
  const int W = filter_.panel_width();
  const int64_t steps = coder_.steps();
  const double unit = 1 / inverse_unit_;
  const int64_t row = padded(steps) + 8;  // an odd multiple of 32 bytes for most d: rows spread over the cache's sets
  std::vector<double> centred(padded(codes_.d));
  std::vector<int32_t> rows(W * row);  // the panel's codes in words, to be transposed
  for (int64_t p = begin; p < end; ++p) {
    int32_t* panel = words_.data() + p * panel_words();
    if (survey_.is_outlier(p) || survey_.facts().exact_only) {
      std::fill_n(panel, panel_words(), 0);
      continue;
    }
    for (int c = 0; c < W; ++c) {
      const int64_t k = p * W + c;
      if (k >= codes_.K || codes_.excluded(k)) {
        std::fill_n(&rows[c * row], steps, 0);
        continue;
      }
      survey_.centre(codes_.e, k, centred.data());
      residuals2_[p] = std::max(residuals2_[p], coder_.encode(centred.data(), unit, &rows[c * row]));
    }
    constexpr int64_t kBlock = 16;  // steps whose part of the panel stays in L1
    for (int64_t first = 0; first < steps; first += kBlock) {
      const int64_t last = std::min(first + kBlock, steps);
      for (int c = 0; c < W; ++c) {
        const int32_t* words = &rows[c * row];
        int32_t* column = panel + survey_.slot(c);
        for (int64_t j = first; j < last; ++j) column[j * W] = words[j];
      }
    }
  }
}

void PackedCodes::settle() {
  residual_ = WordCoder::residual(*std::max_element(residuals2_.begin(), residuals2_.end()), inverse_unit_,
                                  survey_.facts().norm);
}

RowPlan PackedCodes::encode_row(const Matrix& z, int64_t i, int32_t* words, float* factor, double* scratch) const {
  const int d = codes_.d;
  const int64_t steps = coder_.steps();
  const CodeSurvey::Facts& facts = survey_.facts();
  RowPlan plan;
  const RowSize size = survey_.centre(z, i, scratch);
  plan.valid = survey_.any_valid();
  if (plan.valid && !(size.norm2 < std::numeric_limits<double>::infinity())) {
    z.load(i, d, scratch);
    plan.valid = all_finite(scratch, d);
  }
  const double norm = std::sqrt(size.norm2), reach = norm + facts.norm;
  plan.exact_only = facts.exact_only || coder_.roundings() > kMaxRoundings || !(norm < 0x1p100) ||
                    !(reach < 0x1p500 * survey_.scale()) || !(facts.packed_bias + 2 * norm * facts.norm < 0x1p100);
  if (!plan.valid || plan.exact_only) {
    for (int64_t j = 0; j < steps; ++j) words[j * kTileRows] = 0;
    *factor = 0;
    return plan;
  }
  // In units of the scaled, centred data, S_k = ||e'_k||^2 + bias_k - 2 z'.e'_k is D less a constant of the row.
  //   |score_k - S_k| <= error: words stand for z^ and e^, and z'.e' - z^.e^ = (z' - z^).e' + z^.(e' - e^), by
  //     Cauchy-Schwarz with the norms of what rounding left; then the roundings of the score, each at most 2^-24 of
  //     the largest partial sum; 1 % for second-order terms. `tiny` covers results below the smallest normal number.
  //   |D_k - its exact value| <= (d + 4) 2^-53 (reach^2 + |bias|), and twice that for the float64 centring above.
  auto* encoded = reinterpret_cast<int32_t*>(scratch + padded(d));
  const double inverse = coder_.inverse_row_unit(norm, size.largest);
  const double residual = WordCoder::residual(coder_.encode(scratch, 1 / inverse, encoded), inverse, norm);
  for (int64_t j = 0; j < steps; ++j) words[j * kTileRows] = encoded[j];
  *factor = float(-2 * inverse * inverse_unit_);
  const double row = norm + residual, code = facts.norm + residual_;  // bounds on the norms of z^ and e^
  const double magnitude = facts.packed_bias + 2 * row * code;
  const double tiny = (d + 2) * 0x1p-118 * (1 + 2 * reach);
  const double error =
      1.01 * (2 * (residual * facts.norm + row * residual_) + coder_.roundings() * 0x1p-24 * magnitude) + tiny;
  const double rounding = (d + 8) * 0x1p-52 * (reach * reach + facts.bias);
  // The last term is for the fp32 sum of a score and the margin.
  const double margin = 1.001 * (2 * (error + rounding) + 0x1p-22 * magnitude);
  plan.margin = float(margin);
  plan.exact_only = !(margin < 0x1p100);
  return plan;
}

}  // namespace vqdm::cpu
