#include "cpu/exact_search.h"

#include <math.h>
#include <string.h>

#include "cpu/search.h"

namespace vq_cpu {
namespace {

bool row_is_finite(const float* row, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d)
    if (!(fabsf(row[d]) < INFINITY)) return false;
  return true;
}

}  // namespace

bool ExactSearch::open(Search* search) {
  search_ = search;
  const int64_t dim = search->x->dim;
  return scan_rows_.resize(search->block_rows) && lane_of_.resize(search->block_rows) && row_.resize(dim) &&
         last_row_.resize(dim) && lane_row_.resize(dim) && exact_rows_.resize(dim * kExactLanes);
}

void ExactSearch::start(const RowBlock& block) {
  block_ = block;
  scan_count_ = 0;
}

void ExactSearch::choose_exactly(int i, const int32_t* candidates, int n) {
  search_->kernels->load_rows(search_->x, block_.first + i, 1, row_);
  block_.index[i] = nearest_of(row_, candidates, n);
}

int64_t ExactSearch::nearest_of(const float* row, const int32_t* candidates, int n) const {
  const Codebook& codebook = search_->codebook;
  ExactScore best = {INFINITY, INFINITY};
  int64_t index = candidates[0];
  for (int first = 0; first < n; first += kExactCodes) {
    const float* codes[kExactCodes];
    ExactScore scores[kExactCodes];
    for (int c = 0; c < kExactCodes; ++c)
      codes[c] = codebook.codes + candidates[first + c < n ? first + c : n - 1] * codebook.dim;
    exact_scores(row, codes, codebook.dim, codebook.l2, scores);
    for (int c = 0; c < kExactCodes && first + c < n; ++c) {
      if (!(scores[c] < best)) continue;
      best = scores[c];
      index = candidates[first + c];
    }
  }
  return index;
}

void ExactSearch::queue_unbounded(int i) {
  search_->kernels->load_rows(search_->x, block_.first + i, 1, row_);
  block_.nonfinite[i] = !row_is_finite(row_, search_->x->dim);
  if (block_.nonfinite[i])
    block_.index[i] = 0;
  else
    queue_for_scan(i);
}

// Rows that need the scan are often the same one: of zeros, of padding.
bool ExactSearch::scan_queued_rows() {
  if (!scan_count_) return true;
  if (!search_->codebook.ensure_squares()) return false;
  const int64_t dim = search_->codebook.dim;
  int lanes = 0, from = 0;
  for (int s = 0; s < scan_count_; ++s) {
    search_->kernels->load_rows(search_->x, block_.first + scan_rows_[s], 1, row_);
    const bool repeated = (lanes || last_index_ >= 0) && rows_are_equal(row_, last_row_, dim);
    if (repeated && !lanes) {
      block_.index[scan_rows_[s]] = last_index_;
      from = s + 1;
      continue;
    }
    if (!repeated) {
      if (lanes == kExactLanes) {
        if (!scan_lanes(from, s, lanes)) return false;
        from = s;
        lanes = 0;
      }
      for (int64_t d = 0; d < dim; ++d) exact_rows_[d * kExactLanes + lanes] = row_[d];
      memcpy(last_row_, row_, size_t(dim) * sizeof(float));
      ++lanes;
    }
    lane_of_[s] = lanes - 1;
  }
  const bool done = !lanes || scan_lanes(from, scan_count_, lanes);
  scan_count_ = 0;
  return done;
}

// The queued rows from .. to - 1, which share `lanes` lanes.
bool ExactSearch::scan_lanes(int from, int to, int lanes) {
  if (search_->interruption->requested()) return false;
  const Codebook& codebook = search_->codebook;
  for (int64_t d = 0; d < codebook.dim; ++d)
    for (int lane = lanes; lane < kExactLanes; ++lane) exact_rows_[d * kExactLanes + lane] = 0.0;
  int64_t nearest[kExactLanes];
  bool settled = false;
  if (skip_)
    --skip_;
  else if (settle_lanes(lanes, nearest))
    settled = true;
  else
    skip_ = kSkippedScans;
  if (!settled)
    search_->kernels->exact_scan(exact_rows_, codebook.codes, codebook.usable, codebook.squares_high,
                                 codebook.squares_low, codebook.count, codebook.dim, nearest);
  for (int s = from; s < to; ++s) block_.index[scan_rows_[s]] = nearest[lane_of_[s]];
  last_index_ = nearest[lanes - 1];
  return true;
}

// In float64, and exactly among the few codes that it leaves. False, with nothing of use written, if it leaves a row
// so many that scanning all codes is the faster way, or there is no memory.
bool ExactSearch::settle_lanes(int lanes, int64_t* nearest) {
  const Codebook& codebook = search_->codebook;
  if (!scores_.get() && !scores_.resize(codebook.count * kExactLanes)) return false;
  search_->kernels->wide_scan(exact_rows_, codebook.codes, codebook.usable, codebook.squares_high, codebook.count,
                              codebook.dim, scores_);
  double least[kExactLanes], norm2[kExactLanes] = {};
  for (int lane = 0; lane < kExactLanes; ++lane) least[lane] = INFINITY;
  for (int64_t j = 0; j < codebook.count; ++j)
    for (int lane = 0; lane < kExactLanes; ++lane) {
      const double score = scores_[j * kExactLanes + lane];
      least[lane] = score < least[lane] ? score : least[lane];
    }
  for (int64_t d = 0; d < codebook.dim; ++d)
    for (int lane = 0; lane < kExactLanes; ++lane) {
      const double v = exact_rows_[d * kExactLanes + lane];
      norm2[lane] += v * v;
    }
  constexpr int kNear = 64;
  const int64_t most = codebook.count / 8 < kNear ? codebook.count / 8 : kNear;
  int32_t near[kExactLanes][kNear + 1];
  int counts[kExactLanes] = {};
  double limit[kExactLanes];
  for (int lane = 0; lane < kExactLanes; ++lane)
    limit[lane] = least[lane] +
                  2.0 * search_->certificate.float64(codebook.dim, 1.01 * sqrt(norm2[lane]), codebook.longest);
  for (int64_t j = 0; j < codebook.count; ++j)
    for (int lane = 0; lane < lanes; ++lane) {
      if (!(scores_[j * kExactLanes + lane] <= limit[lane])) continue;
      if (counts[lane] > most) return false;
      near[lane][counts[lane]++] = int32_t(j);
    }
  for (int lane = 0; lane < lanes; ++lane) {
    nearest[lane] = 0;
    if (!(least[lane] < INFINITY)) continue;  // no code to choose
    for (int64_t d = 0; d < codebook.dim; ++d) lane_row_[d] = float(exact_rows_[d * kExactLanes + lane]);
    nearest[lane] = counts[lane] == 1 ? near[lane][0] : nearest_of(lane_row_, near[lane], counts[lane]);
  }
  return true;
}

}  // namespace vq_cpu
