#include "cpu/exact_search.h"

#include <math.h>
#include <string.h>

#include "cpu/exact.h"
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
         last_row_.resize(dim) && exact_rows_.resize(dim * kExactLanes);
}

void ExactSearch::start(const RowBlock& block) {
  block_ = block;
  scan_count_ = 0;
}

void ExactSearch::choose_exactly(int i, const int32_t* candidates, int n) {
  const Codebook& codebook = search_->codebook;
  search_->kernels->load_rows(search_->x, block_.first + i, 1, row_);
  ExactScore best = {INFINITY, INFINITY};
  for (int c = 0; c < n; ++c) {
    const int64_t j = candidates[c];
    const ExactScore score =
        exact_score(row_, codebook.codes + j * codebook.dim, codebook.dim, codebook.l2);
    if (score < best) {
      best = score;
      block_.index[i] = j;
    }
  }
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
  search_->kernels->exact_scan(exact_rows_, codebook.codes, codebook.usable, codebook.squares_high,
                               codebook.squares_low, codebook.count, codebook.dim, nearest);
  for (int s = from; s < to; ++s) block_.index[scan_rows_[s]] = nearest[lane_of_[s]];
  last_index_ = nearest[lanes - 1];
  return true;
}

}  // namespace vq_cpu
