#include "filter_pass.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace vqdm::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kPanelBytes = 384 << 10;  // the share of a 1 MB L2 that a block of panels may take
constexpr int64_t kSweepPanels = 64;        // panels whose hits are looked at together

}  // namespace

void FilterPass::run(const PackedCodes& packed, const Matrix& z, const std::vector<int64_t>& rows) {
  packed_ = &packed;
  rows_ = rows;
  const NearestCodeFilter& filter = packed.filter();
  const int64_t count = int64_t(rows.size()), tiles = (count + kTileRows - 1) / kTileRows;
  words_.reserve(tiles * tile_words());
  plans_.resize(count);
  factors_.resize(tiles * kTileRows);
  minima_.resize(tiles * kTileRows);
  selections_.resize(count);
  scratch_.resize(2 * kTileRows * padded(packed.d()));
  for (int64_t i = 0; i < count; i += kTileRows) {
    packed.encode_tile(z, &rows[i], int(std::min<int64_t>(kTileRows, count - i)),
                       words_.data() + i / kTileRows * tile_words(), &factors_[i], &plans_[i], scratch_.data());
  }
  if (std::none_of(plans_.begin(), plans_.end(), [](const RowPlan& p) { return p.valid && !p.exact_only; })) return;
  for (LaneMinima& minima : minima_) {
    std::fill_n(minima.best, kMaxLanes, kInfinity);
    std::fill_n(minima.second, kMaxLanes, kInfinity);
  }
  // A block of panels stays in cache while every tile of rows passes over it.
  const int64_t panels = packed.num_panels();
  const int64_t block = std::max<int64_t>(1, kPanelBytes / (packed.panel_words() * int64_t(sizeof(int32_t))));
  for (int64_t p = 0; p < panels; p += block) {
    for (int64_t t = 0; t < tiles; ++t) {
      filter.scan({words_.data() + t * tile_words(), &factors_[t * kTileRows]}, packed.panels(), p,
                  std::min(p + block, panels), &minima_[t * kTileRows]);
      if (p + block < panels) continue;
      // Here, and not where each row's lanes are looked at: those branches cannot be foreseen, this can run ahead.
      for (int64_t i = t * kTileRows; i < std::min((t + 1) * kTileRows, count); ++i) {
        selections_[i] = filter.select(minima_[i], plans_[i].margin);
      }
    }
  }
}

bool FilterPass::certify(int64_t i, const CodeTable& codes, ExactBatch& batch, Best* best) const {
  if (plans_[i].exact_only) {
    batch.add(rows_[i], 0, codes.K, best);
    return true;
  }
  const NearestCodeFilter& filter = packed_->filter();
  const Selection& lanes = selections_[i];
  if (lanes.limit == kInfinity) return true;  // the filter holds no code that could be chosen
  if (packed_->all_beyond(plans_[i], lanes.limit, best->dist2)) return true;
  if (lanes.second != 0) return false;  // more groups of one lane than the minima name
  for (unsigned left = lanes.best; left != 0; left &= left - 1) {
    const int l = __builtin_ctz(left);
    const int64_t group = int64_t(minima_[i].panel[l]) * filter.panel_width() + int64_t(l) * filter.vectors;
    batch.add(rows_[i], group, std::min(group + filter.vectors, codes.K), best);
  }
  return true;
}

void FilterPass::sweep(const std::vector<int64_t>& open, CodeTable& codes, ExactBatch& batch,
                       const std::vector<Best*>& best) {
  const NearestCodeFilter& filter = packed_->filter();
  const int64_t panels = packed_->num_panels(), count = int64_t(open.size());
  open_words_.reserve(tile_words());
  hits_.resize(kSweepPanels * kTileRows);
  for (int64_t t = 0; t < count; t += kTileRows) {
    const int rows = int(std::min<int64_t>(kTileRows, count - t));
    float factors[kTileRows] = {}, thresholds[kTileRows];
    std::fill_n(thresholds, kTileRows, -kInfinity);
    std::fill_n(open_words_.data(), tile_words(), 0);
    for (int r = 0; r < rows; ++r) {
      const int64_t i = open[t + r];
      const int32_t* words = words_.data() + i / kTileRows * tile_words() + i % kTileRows;
      int32_t* column = open_words_.data() + r;
      for (int64_t j = 0, steps = packed_->steps(); j < steps; ++j) column[j * kTileRows] = words[j * kTileRows];
      factors[r] = factors_[i];
      thresholds[r] = selections_[i].limit;
    }
    int64_t considered = 0;
    for (int64_t p = 0; p < panels; p += kSweepPanels) {
      const int64_t end = std::min(p + kSweepPanels, panels);
      filter.find({open_words_.data(), factors}, packed_->panels(), p, end, thresholds, hits_.data());
      for (int64_t at = 0; at < (end - p) * kTileRows; ++at) {
        for (unsigned lanes = hits_[at]; lanes != 0; lanes &= lanes - 1) {
          const int64_t panel = p + at / kTileRows, n = t + at % kTileRows;
          const int64_t group = panel * filter.panel_width() + int64_t(__builtin_ctz(lanes)) * filter.vectors;
          batch.add(rows_[open[n]], group, std::min(group + filter.vectors, codes.K), best[n]);
          considered += filter.vectors;
          // A collapsed codebook holds equal codes, and every one of them is a candidate: drop all but the first of
          // each.
          if (considered >= 2 * kTileRows * filter.panel_width()) codes.exclude_duplicates();
        }
      }
    }
  }
}

}  // namespace vqdm::cpu
