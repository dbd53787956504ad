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

bool RememberedRows::open(int64_t dim) {
  dim_ = dim;
  return rows_.resize(kRows * dim);
}

int64_t RememberedRows::find(const float* row) {
  const float wanted = key(row, dim_);
  for (int r = 0; r < count_; ++r)
    if (keys_[r] == wanted && rows_are_equal(row, rows_ + r * dim_, dim_)) {
      met_[r] = ++turn_;
      return index_[r];
    }
  return -1;
}

void RememberedRows::add(const float* row, int64_t index) {
  int to = 0;
  if (count_ < kRows) to = count_++;
  else
    for (int r = 1; r < kRows; ++r)
      if (met_[r] < met_[to]) to = r;
  memcpy(rows_ + to * dim_, row, size_t(dim_) * sizeof(float));
  keys_[to] = key(row, dim_);
  index_[to] = index;
  met_[to] = ++turn_;
}

bool ExactSearch::open(Search* search) {
  search_ = search;
  const int64_t dim = search->x->dim;
  return scan_rows_.resize(search->block_rows) && lane_of_.resize(search->block_rows) && row_.resize(dim) &&
         remembered_.open(dim) && lane_rows_.resize(kExactLanes * dim) && exact_rows_.resize(dim * kExactLanes);
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

bool ExactSearch::scan_queued_rows() {
  const int64_t dim = search_->codebook.dim;
  int lanes = 0, from = 0;
  for (int s = 0; s < scan_count_; ++s) {
    search_->kernels->load_rows(search_->x, block_.first + scan_rows_[s], 1, row_);
    int lane = 0;
    while (lane < lanes && !rows_are_equal(row_, lane_rows_ + lane * dim, dim)) ++lane;
    const int64_t known = lane < lanes ? -1 : remembered_.find(row_);
    lane_of_[s] = known >= 0 ? -1 : lane;
    if (known >= 0) block_.index[scan_rows_[s]] = known;
    if (known >= 0 || lane < lanes) continue;
    if (lanes == kExactLanes) {
      if (!scan_lanes(from, s, lanes)) return false;
      from = s;
      lane_of_[s] = lanes = 0;
    }
    memcpy(lane_rows_ + lanes++ * dim, row_, size_t(dim) * sizeof(float));
  }
  const bool done = !lanes || scan_lanes(from, scan_count_, lanes);
  scan_count_ = 0;
  return done;
}

// The queued rows from .. to - 1, which share `lanes` lanes.
bool ExactSearch::scan_lanes(int from, int to, int lanes) {
  if (search_->interruption->requested()) return false;
  const Codebook& codebook = search_->codebook;
  const int64_t dim = codebook.dim;
  for (int64_t d = 0; d < dim; ++d)
    for (int lane = 0; lane < kExactLanes; ++lane)
      exact_rows_[d * kExactLanes + lane] = lane < lanes ? double(lane_rows_[lane * dim + d]) : 0.0;
  int64_t nearest[kExactLanes];
  if (!settle_lanes(lanes, nearest)) {
    if (!search_->codebook.ensure_squares()) return false;
    search_->kernels->exact_scan(exact_rows_, codebook.codes, codebook.usable, codebook.squares_high,
                                 codebook.squares_low, codebook.count, codebook.dim, lanes, nearest);
  }
  for (int s = from; s < to; ++s)
    if (lane_of_[s] >= 0) block_.index[scan_rows_[s]] = nearest[lane_of_[s]];
  for (int lane = 0; lane < lanes; ++lane) remembered_.add(lane_rows_ + lane * dim, nearest[lane]);
  return true;
}

// In float64, and exactly among the codes that it leaves. False, with nothing of use written, if it leaves a row so
// many that scanning all codes is the faster way, or there is no memory.
bool ExactSearch::settle_lanes(int lanes, int64_t* nearest) {
  const Codebook& codebook = search_->codebook;
  const Kernels& kernels = *search_->kernels;
  if (!search_->codebook.ensure_lengths(&kernels) ||
      (!near_.get() && !(scores_.resize((codebook.count + kExactLanes) * kExactLanes) &&
                         groups_.resize(codebook.count) && open_.resize(codebook.count + 1) &&
                         near_.resize(codebook.count))))
    return false;
  double norms[kExactLanes] = {}, limit[kExactLanes];
  for (int64_t d = 0; d < codebook.dim; ++d)
    for (int lane = 0; lane < kExactLanes; ++lane) {
      const double v = exact_rows_[d * kExactLanes + lane];
      norms[lane] += v * v;
    }
  for (double& norm : norms) norm = 1.01 * sqrt(norm);
  WideScan scan = {};
  scan.x = exact_rows_;
  scan.codes = codebook.codes;
  scan.usable = codebook.usable;
  scan.half_squares = codebook.half_squares;
  scan.lengths = codebook.lengths;
  scan.norms = norms;
  scan.error = 1.01 * search_->certificate.float64(codebook.dim);
  scan.count = codebook.count;
  scan.dim = codebook.dim;
  scan.l2 = codebook.l2;
  scan.lanes = lanes;
  scan.scores = scores_;
  scan.limit = limit;
  scan.groups = groups_;
  scan.near = near_;
  scan.open = open_;
  open_count_ = kernels.wide_scan(&scan);
  constexpr int kNear = 64;
  const int64_t most = codebook.count / 8 < kNear ? codebook.count / 8 : kNear;
  int32_t near[kExactLanes][kNear + 1];
  int counts[kExactLanes] = {};
  for (int64_t i = 0; i < open_count_; ++i)
    for (unsigned bits = near_[open_[i]]; bits; bits &= bits - 1) {
      const int lane = __builtin_ctz(bits);
      if (counts[lane] > most) return settle_in_whole_numbers(lanes, norms, nearest);
      near[lane][counts[lane]++] = open_[i];
    }
  for (int lane = 0; lane < lanes; ++lane) {
    nearest[lane] = 0;
    if (!counts[lane]) continue;
    nearest[lane] = counts[lane] == 1 ? near[lane][0]
                                      : nearest_of(lane_rows_ + lane * codebook.dim, near[lane], counts[lane]);
  }
  return true;
}

bool ExactSearch::settle_in_whole_numbers(int lanes, const double* norms, int64_t* nearest) {
  Codebook& codebook = search_->codebook;
  const int64_t dim = codebook.dim;
  if (!codebook.fixed.ensure(codebook) ||
      (!fixed_rows32_.get() && !(fixed_rows_.resize(dim * kExactLanes) && fixed_rows32_.resize(dim * kExactLanes))))
    return false;
  double longest = 0.0;
  for (int64_t i = 0; i < open_count_; ++i)
    if (codebook.lengths[open_[i]] > longest) longest = codebook.lengths[open_[i]];
  int64_t factor[kExactLanes] = {}, index[kExactLanes];
  bool is_narrow = true;
  for (int lane = 0; lane < lanes; ++lane) {
    const int unit = fix_row(lane_rows_ + lane * dim, dim, codebook.fixed, codebook.l2, fixed_rows_ + lane,
                             factor + lane);
    if (!search_->certificate.score_is_exact(dim, norms[lane], 1.01 * longest, unit)) return false;
    is_narrow &= search_->certificate.ties_fit_32_bits(dim, norms[lane], 1.01 * longest, unit);
  }
  for (int64_t i = 0; is_narrow && i < dim * kExactLanes; ++i) fixed_rows32_[i] = uint32_t(fixed_rows_[i]);
  FixedScan scan = {};
  scan.x = fixed_rows_;
  scan.x32 = is_narrow ? fixed_rows32_.get() : nullptr;
  scan.codes = codebook.fixed.values();
  scan.halves = codebook.l2 ? codebook.fixed.halves() : nullptr;
  scan.factor = factor;
  scan.near = near_;
  scan.open = open_;
  scan.open_count = open_count_;
  scan.dim = dim;
  scan.lanes = lanes;
  scan.index = index;
  search_->kernels->fixed_scan(&scan);
  memcpy(nearest, index, size_t(lanes) * sizeof index[0]);
  return true;
}

}  // namespace vq_cpu
