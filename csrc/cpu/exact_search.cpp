#include "cpu/exact_search.h"

#include <math.h>

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
  return scan_rows_.resize(search->block_rows) && row_.resize(dim) && exact_rows_.resize(dim * kExactLanes);
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

bool ExactSearch::scan_queued_rows() {
  if (!scan_count_) return true;
  Codebook& codebook = search_->codebook;
  if (!codebook.ensure_squares()) return false;
  const int64_t dim = codebook.dim;
  for (int s = 0; s < scan_count_; s += kExactLanes) {
    const int n = scan_count_ - s < kExactLanes ? scan_count_ - s : kExactLanes;
    if (search_->interruption->requested()) return false;
    for (int64_t i = 0; i < dim * kExactLanes; ++i) exact_rows_[i] = 0.0;
    for (int lane = 0; lane < n; ++lane) {
      search_->kernels->load_rows(search_->x, block_.first + scan_rows_[s + lane], 1, row_);
      for (int64_t d = 0; d < dim; ++d) exact_rows_[d * kExactLanes + lane] = row_[d];
    }
    int64_t nearest[kExactLanes];
    search_->kernels->exact_scan(exact_rows_, codebook.codes, codebook.usable, codebook.squares_high,
                                 codebook.squares_low, codebook.count, dim, nearest);
    for (int lane = 0; lane < n; ++lane) block_.index[scan_rows_[s + lane]] = nearest[lane];
  }
  scan_count_ = 0;
  return true;
}

}  // namespace vq_cpu
