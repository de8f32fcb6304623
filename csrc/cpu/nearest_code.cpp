#include "nearest_code.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <type_traits>

#include "cpu_features.h"
#include "default_float_mode.h"
#include "row_math.h"

namespace vqdm::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kL2Bytes = 384 << 10;    // the share of a 1 MB L2 that a block of panels may take
constexpr int64_t kRowBytes = 192 << 10;   // and a block of prepared rows
constexpr int64_t kMaxBlockRows = 384;     // reuses a block of panels 64 times
constexpr int kMaxBoundedTerms = 1 << 16;  // up to here second-order terms stay within the bound's 1 %
constexpr int64_t kCentreSample = 1024;    // codes looked at for centre and scale

float* allocate_floats(int64_t count) {
  // 64-byte alignment: a panel row is one or more whole cache lines.
  void* p = std::aligned_alloc(64, (size_t(count) * sizeof(float) + 63) / 64 * 64);
  if (p == nullptr) throw std::bad_alloc();
  return static_cast<float*>(p);
}

constexpr int kTogether = 4;  // independent sums, which hide the latency of the left-to-right order

// sum_j (z_j - codes_v[j])^2 for kTogether codes, in the order that the definition asks for.
template <typename T>
void distances(const double* z, const T* const* codes, int64_t stride, int d, double* squares, double* sums) {
  std::fill_n(sums, kTogether, 0.0);
  if constexpr (std::is_same_v<T, float>) {
    if (stride == 1) {  // the squares do not depend on the order: vectorised, then summed
      squared_differences(z, codes, d, squares);
      for (int j = 0; j < d; ++j) {
        for (int v = 0; v < kTogether; ++v) sums[v] += squares[int64_t(v) * d + j];
      }
      return;
    }
  }
  for (int j = 0; j < d; ++j) {
    for (int v = 0; v < kTogether; ++v) {
      const double difference = z[j] - double(codes[v][j * stride]);
      sums[v] += difference * difference;
    }
  }
}

}  // namespace

const NearestCodeFilter& nearest_code_filter() {
  static const NearestCodeFilter& chosen = []() -> const NearestCodeFilter& {
    const char* asked = std::getenv("VQDM_CPU_KERNEL");
    const std::string name = asked ? asked : "avx512";
#if defined(VQDM_X86_KERNELS)
    if (name == "avx512" && cpu_features().avx512) return kNearestCodeAvx512;
    if (name != "portable" && cpu_features().avx2_fma) return kNearestCodeAvx2;
#endif
    return kNearestCodePortable;
  }();
  return chosen;
}

struct NearestCodeSearch::RowPlan {
  bool valid = false;       // finite, and there is a code to choose
  bool exact_only = false;  // magnitudes outside what the fp32 filter can bound
  double margin = 0;        // a code whose score exceeds the smallest by more than this cannot win
};

void NearestCodeSearch::FreeDeleter::operator()(float* p) const {
  std::free(p);
}

NearestCodeSearch::NearestCodeSearch(const Matrix& e, const Matrix& bias, int64_t K, int d)
    : e_(e), bias_(bias), K_(K), d_(d), filter_(nearest_code_filter()) {
  const int W = filter_.panel_width();
  num_panels_ = (K + W - 1) / W;
  codes_.reset(allocate_floats(num_panels_ * d * W));
  packed_bias_.reset(allocate_floats(num_panels_ * W));
  excluded_.assign(K, 0);
  panel_facts_.resize(num_panels_);
  choose_centre_and_scale();
}

int64_t NearestCodeSearch::max_block_rows() const {
  const int64_t tiles =
      std::clamp<int64_t>(kRowBytes / (int64_t(d_) * sizeof(float) * kTileRows), 1, kMaxBlockRows / kTileRows);
  return tiles * kTileRows;
}

void NearestCodeSearch::choose_centre_and_scale() {
  // Any centre and scale give right answers; good ones make the bound tight. A sample finds good ones.
  const DefaultFloatMode mode;
  centre_.assign(d_, 0.0);
  const int64_t step = (K_ + kCentreSample - 1) / kCentreSample;
  std::vector<double> code(d_);
  int64_t count = 0;
  for (int64_t k = 0; k < K_; k += step) {
    e_.load(k, d_, code.data());
    if (!all_finite(code.data(), d_)) continue;
    ++count;
    for (int j = 0; j < d_; ++j) centre_[j] += (code[j] - centre_[j]) / double(count);
  }
  double largest = 0;
  for (int64_t k = 0; k < K_; k += step) {
    e_.load(k, d_, code.data());
    if (!all_finite(code.data(), d_)) continue;
    for (int j = 0; j < d_; ++j) largest = std::max(largest, std::abs(code[j] - centre_[j]));
  }
  if (!all_finite(centre_.data(), d_)) centre_.assign(d_, 0.0);
  // Limited to 2^400 so that the scale's square and its inverse stay far inside float64.
  if (largest > 0 && std::isfinite(largest)) scale_ = std::ldexp(1.0, -std::clamp(std::ilogb(largest) + 1, -400, 400));
}

void NearestCodeSearch::pack(int64_t begin, int64_t end) {
  const DefaultFloatMode mode;
  const int W = filter_.panel_width(), V = filter_.vectors, L = filter_.lanes;
  std::vector<double> code(d_), centred(d_);
  for (int64_t p = begin; p < end; ++p) {
    float* panel = codes_.get() + p * d_ * W;
    float* panel_bias = packed_bias_.get() + p * W;
    PanelFacts facts;
    for (int c = 0; c < W; ++c) {
      const int64_t k = p * W + c;
      const int slot = (c % V) * L + c / V;  // V consecutive codes share a lane
      bool valid = k < K_;
      double bias = 0;
      if (valid) {
        e_.load(k, d_, code.data());
        if (bias_.data != nullptr) bias_.load(k, 1, &bias);
        valid = all_finite(code.data(), d_) && !std::isnan(bias) && bias != kInfinity;
        excluded_[k] = !valid;
      }
      if (!valid) {
        for (int j = 0; j < d_; ++j) panel[j * W + slot] = 0.0f;
        panel_bias[slot] = float(kInfinity);
        continue;
      }
      const double norm2 = centre_row(code.data(), centre_.data(), scale_, d_, centred.data());
      for (int j = 0; j < d_; ++j) panel[j * W + slot] = float(centred[j]);
      const double scaled_bias = bias * scale_ * scale_, total = norm2 + scaled_bias;
      panel_bias[slot] = float(total);
      facts.any_valid = true;
      facts.exact_only |= !(norm2 < 0x1p100 && std::abs(scaled_bias) < 0x1p100);
      facts.norm = std::max(facts.norm, std::sqrt(norm2));
      facts.bias = std::max(facts.bias, std::abs(scaled_bias));
      facts.packed_bias = std::max(facts.packed_bias, std::abs(total));
    }
    panel_facts_[p] = facts;
  }
}

void NearestCodeSearch::set_outliers_apart() {
  const auto reach = [](const PanelFacts& panel) { return std::max(panel.norm, std::sqrt(panel.bias)); };
  std::vector<double> reaches;
  for (const PanelFacts& panel : panel_facts_) reaches.push_back(panel.exact_only ? kInfinity : reach(panel));
  const auto middle = reaches.begin() + (num_panels_ - 1) / 2;
  std::nth_element(reaches.begin(), middle, reaches.end());
  const double most = 8 * *middle;
  for (int64_t p = 0; p < num_panels_; ++p) {
    if (panel_facts_[p].exact_only || reach(panel_facts_[p]) > most) outlier_panels_.push_back(p);
  }
  if (int64_t(outlier_panels_.size()) > num_panels_ / 8) outlier_panels_.clear();  // then they are no exception
  const int W = filter_.panel_width();
  for (int64_t p : outlier_panels_) {
    std::fill_n(packed_bias_.get() + p * W, W, float(kInfinity));
    std::fill_n(codes_.get() + p * d_ * W, int64_t(d_) * W, 0.0f);  // no Inf - Inf in the filter
    facts_.any_valid |= panel_facts_[p].any_valid;
    panel_facts_[p] = {};
  }
}

void NearestCodeSearch::finish_packing() {
  set_outliers_apart();
  for (const PanelFacts& panel : panel_facts_) {
    facts_.any_valid |= panel.any_valid;
    facts_.exact_only |= panel.exact_only;
    facts_.norm = std::max(facts_.norm, panel.norm);
    facts_.bias = std::max(facts_.bias, panel.bias);
    facts_.packed_bias = std::max(facts_.packed_bias, panel.packed_bias);
  }
}

NearestCodeSearch::RowPlan NearestCodeSearch::plan_row(const double* z, double* centred, float* x) const {
  RowPlan plan;
  plan.valid = facts_.any_valid && all_finite(z, d_);
  if (!plan.valid) {
    for (int j = 0; j < d_; ++j) x[j * kTileRows] = 0.0f;
    return plan;
  }
  const double norm = std::sqrt(centre_row(z, centre_.data(), scale_, d_, centred)), reach = norm + facts_.norm;
  // In units of the scaled, centred data. S_k = ||e'_k||^2 + bias_k - 2 z'.e'_k is D less a constant of the row.
  //   |score_k - S_k| <= error: one rounding per term of the sum and one of the bias, each at most 2^-24 of the largest
  //     partial sum, and the rounding of z' and e' to fp32, 4 * 2^-24 |z'||e'| by Cauchy-Schwarz; 1 % for second-order
  //     terms. `tiny` covers results below the smallest normal number.
  //   |D_k - its exact value| <= (d + 4) 2^-53 (reach^2 + |bias|), and twice that for the float64 centring above.
  const double magnitude = facts_.packed_bias + 2 * norm * facts_.norm;
  const double tiny = (d_ + 2) * 0x1p-125 * (1 + 2 * reach);
  const double error = 1.01 * (d_ + 4) * 0x1p-24 * magnitude + tiny;
  const double rounding = (d_ + 8) * 0x1p-52 * (reach * reach + facts_.bias);
  plan.margin = 2 * (error + rounding);
  plan.exact_only = facts_.exact_only || d_ > kMaxBoundedTerms || !(magnitude < 0x1p100) ||
                    !(reach / scale_ < 0x1p500) || !(norm < 0x1p100);
  const double fold = plan.exact_only ? 0.0 : -2.0;
  for (int j = 0; j < d_; ++j) x[j * kTileRows] = float(fold * centred[j]);
  return plan;
}

template <typename Out>
void NearestCodeSearch::search(const Matrix& z, int64_t begin, int64_t end, Out* dist2, int64_t* indices) {
  const DefaultFloatMode mode;
  const int W = filter_.panel_width();
  const int64_t rows = end - begin, tiles = (rows + kTileRows - 1) / kTileRows, tile_floats = int64_t(d_) * kTileRows;
  std::unique_ptr<float[], FreeDeleter> x(allocate_floats(tiles * tile_floats));
  std::vector<double> z_row(d_), squares(int64_t(kTogether) * d_);
  std::vector<RowPlan> plans(rows);
  std::vector<LaneMinima> minima(tiles * kTileRows);

  const auto x_of = [&](int64_t i) { return x.get() + i / kTileRows * tile_floats + i % kTileRows; };
  bool any_filtered = false;
  for (int64_t i = 0; i < tiles * kTileRows; ++i) {
    std::fill_n(minima[i].best, kMaxLanes, float(kInfinity));
    std::fill_n(minima[i].second, kMaxLanes, float(kInfinity));
    if (i < rows) {
      z.load(begin + i, d_, z_row.data());
      plans[i] = plan_row(z_row.data(), squares.data(), x_of(i));
      any_filtered |= plans[i].valid && !plans[i].exact_only;
    } else {
      for (int j = 0; j < d_; ++j) x_of(i)[j * kTileRows] = 0.0f;
    }
  }

  // A block of panels stays in L2 while every tile of rows passes over it.
  const int64_t block = std::max<int64_t>(1, kL2Bytes / (int64_t(d_) * W * sizeof(float)));
  for (int64_t p = 0; any_filtered && p < num_panels_; p += block) {
    for (int64_t t = 0; t < tiles; ++t) {
      filter_.scan(x.get() + t * tile_floats, d_, codes_.get(), packed_bias_.get(), p, std::min(p + block, num_panels_),
                   &minima[t * kTileRows]);
    }
  }

  for (int64_t i = 0; i < rows; ++i) {
    Best best{kNaN, 0};
    if (plans[i].valid) {
      z.load(begin + i, d_, z_row.data());
      best = finish_row({z_row.data(), squares.data()}, x_of(i), plans[i], minima[i]);
    }
    dist2[begin + i] = Out(best.dist2);
    indices[begin + i] = best.index;
  }
}

NearestCodeSearch::Best NearestCodeSearch::finish_row(Row z, const float* x, const RowPlan& plan,
                                                      const LaneMinima& minima) {
  Best best{kInfinity, -1};
  if (plan.exact_only) {
    consider(z, 0, K_, best);
    return best;
  }
  const int V = filter_.vectors, L = filter_.lanes, W = filter_.panel_width();
  float smallest = minima.best[0];
  for (int l = 1; l < L; ++l) smallest = std::min(smallest, minima.best[l]);
  const double threshold = double(smallest) + plan.margin;
  for (int64_t p : outlier_panels_) consider(z, p * W, std::min((p + 1) * W, K_), best);
  for (int l = 0; l < L; ++l) {
    if (minima.second[l] <= threshold) {  // more than one group of a lane may hold the winner: look at all codes
      sweep(z, x, threshold, best);
      return best;
    }
  }
  for (int l = 0; l < L; ++l) {
    if (minima.best[l] > threshold) continue;
    const int64_t first = int64_t(minima.panel[l]) * W + int64_t(l) * V;
    consider(z, first, std::min(first + V, K_), best);
  }
  return best;
}

void NearestCodeSearch::sweep(Row z, const float* x, double threshold, Best& best) {
  const int V = filter_.vectors, L = filter_.lanes, W = filter_.panel_width();
  alignas(64) float scores[kMaxPanelWidth];
  int64_t considered = 0;
  bool deduplicated = false;
  for (int64_t p = 0; p < num_panels_; ++p) {
    filter_.score_panel(x, d_, codes_.get(), packed_bias_.get(), p, scores);
    for (int c = 0; c < W; ++c) {
      const int64_t k = p * W + c;
      if (scores[(c % V) * L + c / V] > threshold || k >= K_) continue;
      consider(z, k, k + 1, best);
      // A collapsed codebook holds equal codes, and every one of them is a candidate: drop all but the first of each.
      if (++considered == 2 * W && !deduplicated) {
        std::call_once(duplicates_once_, [this] { find_duplicates(); });
        deduplicated = true;
      }
    }
  }
}

void NearestCodeSearch::consider(Row z, int64_t first, int64_t last, Best& best) const {
  int64_t together[kTogether];
  double sums[kTogether];
  int64_t k = first;
  while (k < last) {
    int count = 0;
    while (k < last && count < kTogether) {
      if (!__atomic_load_n(&excluded_[k], __ATOMIC_RELAXED)) together[count++] = k;
      ++k;
    }
    if (count == 0) continue;
    e_.with_row(0, [&]<typename T>(const T* base) {
      const T* codes[kTogether];
      for (int v = 0; v < kTogether; ++v) codes[v] = base + together[std::min(v, count - 1)] * e_.row_stride;
      distances(z.values, codes, e_.col_stride, d_, z.scratch, sums);
    });
    for (int v = 0; v < count; ++v) {
      double bias = 0;
      if (bias_.data != nullptr) bias_.load(together[v], 1, &bias);
      double dist2 = sums[v] + bias;
      if (std::isnan(dist2)) dist2 = kInfinity;  // an overflowed sum and a bias of -Inf
      if (best.index < 0 || dist2 < best.dist2 || (dist2 == best.dist2 && together[v] < best.index)) {
        best = {dist2, together[v]};
      }
    }
  }
}

void NearestCodeSearch::find_duplicates() {
  struct Key {
    uint64_t hash;
    int64_t k;
  };
  std::vector<Key> keys;
  keys.reserve(K_);
  std::vector<double> code(d_ + 1), other(d_ + 1);
  const auto load = [&](int64_t k, std::vector<double>& out) {
    e_.load(k, d_, out.data());
    out[d_] = 0;
    if (bias_.data != nullptr) bias_.load(k, 1, &out[d_]);
  };
  for (int64_t k = 0; k < K_; ++k) {
    if (excluded_[k]) continue;
    load(k, code);
    uint64_t hash = 0x9e3779b97f4a7c15u;
    for (double value : code) {
      value += 0.0;  // -0.0 and 0.0 are the same number
      uint64_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      hash = (hash ^ bits) * 0xff51afd7ed558ccdu;
      hash ^= hash >> 32;
    }
    keys.push_back({hash, k});
  }
  std::sort(keys.begin(), keys.end(), [](Key a, Key b) { return a.hash != b.hash ? a.hash < b.hash : a.k < b.k; });
  // Equal codes with equal bias stand beside each other, lowest index first. Other threads read excluded_ meanwhile:
  // a byte that turns to 1 only hides a code that can never win, whichever value they see.
  for (size_t i = 1; i < keys.size(); ++i) {
    if (keys[i].hash != keys[i - 1].hash) continue;
    load(keys[i].k, code);
    load(keys[i - 1].k, other);
    if (code == other) __atomic_store_n(&excluded_[keys[i].k], uint8_t(1), __ATOMIC_RELAXED);
  }
}

template void NearestCodeSearch::search(const Matrix&, int64_t, int64_t, float*, int64_t*);
template void NearestCodeSearch::search(const Matrix&, int64_t, int64_t, double*, int64_t*);

}  // namespace vqdm::cpu
