#include "packed_codes.h"

#include <algorithm>
#include <cmath>
#include <limits>

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
      // Not codes_.excluded(): that may hold duplicates by now, whose bias lets them into the scan.
      if (survey_.bias()[p * W + survey_.slot(c)] == std::numeric_limits<float>::infinity()) {
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

void PackedCodes::encode_tile(const Matrix& z, const int64_t* rows, int count, int32_t* words, float* factors,
                              RowPlan* plans, double* scratch) const {
  // Step by step for all rows: the steps of one row wait for each other (sums, square roots, quotients), and those of
  // different rows overlap.
  const int d = codes_.d;
  const int64_t steps = coder_.steps();
  const CodeSurvey::Facts& facts = survey_.facts();
  double norms[kTileRows], inverses[kTileRows], units[kTileRows], residuals2[kTileRows];
  const auto centred = [&](int r) { return scratch + r * padded(d); };
  const auto encoded = [&](int r) { return reinterpret_cast<int32_t*>(scratch + (kTileRows + r) * padded(d)); };
  const auto filtered = [&](int r) { return plans[r].valid && !plans[r].exact_only; };

  RowSize sizes[kTileRows];
  for (int r = 0; r < count; ++r) sizes[r] = survey_.centre(z, rows[r], centred(r));
  for (int r = 0; r < count; ++r) {
    const RowSize& size = sizes[r];
    RowPlan& plan = plans[r];
    plan = {};
    plan.valid = survey_.any_valid();
    if (plan.valid && !(size.norm2 < std::numeric_limits<double>::infinity())) {
      z.load(rows[r], d, centred(r));
      plan.valid = all_finite(centred(r), d);
    }
    const double norm = std::sqrt(size.norm2), reach = norm + facts.norm;
    plan.exact_only = facts.exact_only || coder_.roundings() > kMaxRoundings || !(norm < 0x1p100) ||
                      !(reach < 0x1p500 * survey_.scale()) || !(facts.packed_bias + 2 * norm * facts.norm < 0x1p100);
    plan.norm2 = size.norm2;
    norms[r] = norm;
    inverses[r] = coder_.inverse_row_unit(norm, size.largest);
    units[r] = 1 / inverses[r];
  }
  for (int r = 0; r < kTileRows; ++r) {
    if (r < count && filtered(r)) {
      residuals2[r] = coder_.encode(centred(r), units[r], encoded(r));
      const int32_t* from = encoded(r);
      for (int64_t j = 0; j < steps; ++j) words[j * kTileRows + r] = from[j];
      factors[r] = float(-2 * inverses[r] * inverse_unit_);
    } else {
      for (int64_t j = 0; j < steps; ++j) words[j * kTileRows + r] = 0;
      factors[r] = 0;
    }
  }
  // In units of the scaled, centred data, S_k = ||e'_k||^2 + bias_k - 2 z'.e'_k is D less a constant of the row.
  //   |score_k - S_k| <= error: words stand for z^ and e^, and z'.e' - z^.e^ = (z' - z^).e' + z^.(e' - e^), by
  //     Cauchy-Schwarz with the norms of what rounding left; then the roundings of the score, each at most 2^-24 of
  //     the largest partial sum; 1 % for second-order terms. `tiny` covers results below the smallest normal number.
  //   |D_k - its exact value| <= (d + 4) 2^-53 (reach^2 + |bias|), and twice that for the float64 centring above.
  for (int r = 0; r < count; ++r) {
    if (!filtered(r)) continue;
    const double norm = norms[r], reach = norm + facts.norm;
    const double residual = WordCoder::residual(residuals2[r], inverses[r], norm);
    const double row = norm + residual, code = facts.norm + residual_;  // bounds on the norms of z^ and e^
    const double magnitude = facts.packed_bias + 2 * row * code;
    const double tiny = (d + 2) * 0x1p-118 * (1 + 2 * reach);
    const double error =
        1.01 * (2 * (residual * facts.norm + row * residual_) + coder_.roundings() * 0x1p-24 * magnitude) + tiny;
    const double rounding = (d + 8) * 0x1p-52 * (reach * reach + facts.bias);
    // The last term is for the fp32 sum of a score and the margin.
    const double margin = 1.001 * (2 * (error + rounding) + 0x1p-22 * magnitude);
    plans[r].margin = float(margin);
    plans[r].exact_only = !(margin < 0x1p100);
  }
}

bool PackedCodes::all_beyond(const RowPlan& plan, float limit, double dist2) const {
  // D_k = S_k + ||z'||^2 to within `rounding` above, S_k >= score_k - error, and the margin is at least twice the sum
  // of both and of what rounding the limit to fp32 takes: so D_k >= limit - 2 margin + ||z'||^2.
  const double scaled = dist2 * survey_.scale() * survey_.scale();
  return scaled + 0x1p-40 * std::abs(scaled) < limit - 2.0 * plan.margin + plan.norm2;
}

}  // namespace vqdm::cpu
