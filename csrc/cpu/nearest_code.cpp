#include "nearest_code.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "default_float_mode.h"

namespace vqdm::cpu {
namespace {

constexpr int64_t kRowBytes = 192 << 10;  // the share of L2 that a block of prepared rows may take
constexpr int64_t kMaxBlockRows = 384;    // reuses a block of panels 64 times
constexpr int64_t kOpenShare = 8;         // with one row in 8 open, packing the codes for a finer filter pays

}  // namespace

NearestCodeSearch::NearestCodeSearch(const Matrix& e, const Matrix& bias, int64_t K, int d)
    : codes_(e, bias, K, d), filter_(nearest_code_filter()), survey_(codes_, filter_) {}

void NearestCodeSearch::settle() {
  survey_.settle();
  packed_.emplace(codes_, survey_, filter_);
}

int64_t NearestCodeSearch::max_block_rows() const {
  const int64_t tile_bytes = WordCoder(filter_, codes_.d).steps() * kTileRows * int64_t(sizeof(int32_t));
  return std::clamp<int64_t>(kRowBytes / tile_bytes, 1, kMaxBlockRows / kTileRows) * kTileRows;
}

const PackedCodes& NearestCodeSearch::finer_codes() {
  std::call_once(finer_once_, [this] {
    finer_.emplace(codes_, survey_, *filter_.finer);
    finer_->pack(0, num_panels());
    finer_->settle();
  });
  return *finer_;
}

template <typename Out>
void NearestCodeSearch::search(const Matrix& z, int64_t begin, int64_t end, Out* dist2, int64_t* indices,
                               Workspace& work) {
  const DefaultFloatMode mode;
  const int64_t count = end - begin;
  work.rows.resize(count);
  std::iota(work.rows.begin(), work.rows.end(), begin);
  work.best.assign(count, {});
  work.open.clear();
  work.pass.run(*packed_, z, work.rows);

  ExactBatch batch(codes_, filter_.rows, z);
  const int W = filter_.panel_width();
  if (!survey_.outlier_panels().empty()) {
    for (int64_t i = 0; i < count; ++i) {
      const RowPlan& plan = work.pass.plan(i);
      if (!plan.valid || plan.exact_only) continue;
      for (int64_t p : survey_.outlier_panels()) {
        batch.add(begin + i, p * W, std::min((p + 1) * W, codes_.K), &work.best[i]);
      }
    }
    batch.flush();  // certify() asks for the best of them
  }
  for (int64_t i = 0; i < count; ++i) {
    if (!work.pass.plan(i).valid) continue;
    if (!work.pass.certify(i, codes_, batch, &work.best[i])) work.open.push_back(i);
  }
  if (!work.open.empty()) resolve_open(z, batch, work);
  batch.flush();

  for (int64_t i = 0; i < count; ++i) {
    const Best& best = work.best[i];
    const bool found = best.index != Best::kNone;
    dist2[begin + i] = found ? Out(best.dist2) : std::numeric_limits<Out>::quiet_NaN();
    indices[begin + i] = found ? best.index : 0;
  }
}

void NearestCodeSearch::resolve_open(const Matrix& z, ExactBatch& batch, Workspace& work) {
  const auto best_of = [&](int64_t i) { return &work.best[i]; };
  const int64_t count = int64_t(work.open.size());
  std::vector<Best*> best(count);
  std::transform(work.open.begin(), work.open.end(), best.begin(), best_of);
  if (filter_.finer == nullptr || count * kOpenShare < work.pass.size()) {
    work.pass.sweep(work.open, codes_, batch, best);
    return;
  }
  std::vector<int64_t> rows(count), still_open;
  std::transform(work.open.begin(), work.open.end(), rows.begin(), [&](int64_t i) { return work.rows[i]; });
  work.finer_pass.run(finer_codes(), z, rows);
  std::vector<Best*> best_of_still_open;
  for (int64_t n = 0; n < count; ++n) {
    if (work.finer_pass.certify(n, codes_, batch, best[n])) continue;
    still_open.push_back(n);
    best_of_still_open.push_back(best[n]);
  }
  work.finer_pass.sweep(still_open, codes_, batch, best_of_still_open);
}

template <typename Out>
bool nearest_code_directly(const Matrix& e, const Matrix& bias, int64_t K, int d, const Matrix& z, int64_t N,
                           Out* dist2, int64_t* indices) {
  const DefaultFloatMode mode;
  const CodeTable codes(e, bias, K, d);
  ExactBatch batch(codes, nearest_code_filter().rows, z);
  for (int64_t i = 0; i < N; ++i) {
    Best best;
    batch.add(i, 0, K, &best);
    batch.flush();
    // A code that is never chosen, or a row with a NaN or Inf, has no finite D.
    if (!std::isfinite(best.dist2)) return false;
    dist2[i] = Out(best.dist2);
    indices[i] = best.index;
  }
  return true;
}

template bool nearest_code_directly(const Matrix&, const Matrix&, int64_t, int, const Matrix&, int64_t, float*,
                                    int64_t*);
template bool nearest_code_directly(const Matrix&, const Matrix&, int64_t, int, const Matrix&, int64_t, double*,
                                    int64_t*);
template void NearestCodeSearch::search(const Matrix&, int64_t, int64_t, float*, int64_t*, Workspace&);
template void NearestCodeSearch::search(const Matrix&, int64_t, int64_t, double*, int64_t*, Workspace&);

}  // namespace vqdm::cpu
