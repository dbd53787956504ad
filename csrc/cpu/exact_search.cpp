#include "cpu/exact_search.h"

#include <math.h>
#include <string.h>

#include <algorithm>

#include "cpu/search.h"

namespace vq_cpu {
namespace {

bool row_is_finite(const float* row, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d)
    if (!(fabsf(row[d]) < INFINITY)) return false;
  return true;
}

bool row_is_flat(const float* row, int64_t dim) {
  for (int64_t d = 1; d < dim; ++d)
    if (row[d] != row[0]) return false;
  return true;
}

// What an error-free sum costs a dimension, and the same of a code in whole numbers for sixteen rows: in cycles of an
// EPYC, but their ratio is much the same elsewhere.
constexpr int64_t kExactCycles = 4, kFixedCycles = 3, kExactScanCycles = 17;
// The same of a dimension of one code in nanoseconds, and what a code, and a dimension of one, costs a row in a scan.
constexpr double kExactNsADim = 1.0, kScannedNs = 0.4, kScannedNsADim = 0.034;

}  // namespace

bool ExactSearch::open(Search* search) {
  search_ = search;
  const int64_t dim = search->x->dim;
  const int64_t rows = search->block_rows;
  return scan_rows_.resize(rows) && flat_rows_.resize(rows) && lane_of_.resize(rows) && row_.resize(dim) &&
         remembered_.open(dim) && lane_rows_.resize(kExactLanes * dim) && exact_rows_.resize(dim * kExactLanes);
}

void ExactSearch::start(const RowBlock& block) {
  block_ = block;
  scan_count_ = 0;
  long_lists_ /= 2;
}

// A scan takes as long for one row as for eight, so that the first ones do not begin it.
bool ExactSearch::queue_long(int i, double list_ns) {
  const double dim = double(search_->codebook.dim), codes = double(search_->codebook.count);
  if (list_ns < codes * (kScannedNs + kScannedNsADim * dim) || ++long_lists_ < kExactLanes) return false;
  queue_for_scan(i);
  return true;
}

void ExactSearch::choose_exactly(int i, const int32_t* candidates, int n) {
  if (queue_long(i, n * kExactNsADim * double(search_->codebook.dim))) return;
  search_->kernels->load_rows(search_->x, block_.first + i, 1, row_);
  block_.index[i] = nearest_of(row_, candidates, n);
}

void ExactSearch::choose_listed(int i, const float* row, double norm, const int32_t* candidates, int n) {
  Codebook& codebook = search_->codebook;
  // The scan asks for the same memory, and says that there is none.
  if (!(has_lengths_ = has_lengths_ || codebook.ensure_lengths(search_->kernels))) return queue_for_scan(i);
  double largest = 0.0, scores[kMostListed];
  const double* half_squares = codebook.half_squares;
  const double least = search_->kernels->score_listed(row, codebook.codes, codebook.l2 ? half_squares : nullptr,
                                                      candidates, n, codebook.dim, scores);
  for (int c = 0; c < n; ++c) largest = std::max(largest, half_squares[candidates[c]]);
  const double limit = least + 2.0 * search_->certificate.float64(codebook.dim, norm, 1.01 * sqrt(2.0 * largest));
  int32_t tied[kMostListed];
  int left = 0;
  for (int c = 0; c < n; ++c) {  // without a jump: which codes are left is guessed wrongly
    tied[left] = candidates[c];
    left += scores[c] <= limit;
  }
  block_.index[i] = tied[0];
  if (left < 2) return;
  std::sort(tied, tied + left);
  choose_exactly(i, tied, left);
}

// Summed once a code, but for want of memory.
ExactSum ExactSearch::half_of(int64_t code) {
  const Codebook& codebook = search_->codebook;
  const float* e = codebook.codes + code * codebook.dim;
  if (!has_half_.get()) {
    if (!halves_.resize(codebook.count) || !has_half_.resize(codebook.count)) return half_square(e, codebook.dim);
    memset(has_half_, 0, size_t(codebook.count));
  }
  if (!has_half_[code]) {
    halves_[code] = half_square(e, codebook.dim);
    has_half_[code] = 1;
  }
  return halves_[code];
}

int64_t ExactSearch::nearest_of(const float* row, const int32_t* candidates, int n) {
  const Codebook& codebook = search_->codebook;
  ExactScore best = {INFINITY, INFINITY};
  int64_t index = candidates[0];
  for (int first = 0; first < n; first += kExactCodes) {
    const float* codes[kExactCodes];
    ExactScore scores[kExactCodes];
    ExactSum halves[kExactCodes];
    for (int c = 0; c < kExactCodes; ++c) {
      const int64_t code = candidates[first + c < n ? first + c : n - 1];
      codes[c] = codebook.codes + code * codebook.dim;
      if (codebook.l2) halves[c] = half_of(code);
    }
    exact_scores(row, codes, halves, codebook.dim, scores);
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
  flat_count_ = 0;
  int count = 0;
  for (int s = 0; s < scan_count_; ++s) {
    search_->kernels->load_rows(search_->x, block_.first + scan_rows_[s], 1, row_);
    if (row_is_flat(row_, dim))
      flat_rows_[flat_count_++] = scan_rows_[s];
    else
      scan_rows_[count++] = scan_rows_[s];
  }
  scan_count_ = 0;
  const bool by_region = order_.is_wanted(search_->codebook, count);
  if (by_region && !order_.sort(search_, block_, scan_rows_, count)) return false;
  return scan_rows(scan_rows_, count, false, by_region) && scan_rows(flat_rows_, flat_count_, true, false);
}

bool ExactSearch::scan_rows(const int* rows, int count, bool flat, bool by_region) {
  const Codebook& codebook = search_->codebook;
  const int64_t dim = codebook.dim;
  int lanes = 0, from = 0;
  unsigned regions = 0;
  int64_t scanned = 0, compared = 0;
  asked_ = 0;
  const auto scan = [&](int to) {
    scanned += lanes;
    compared += by_region ? lanes * codebook.regions.size(regions) : 0;
    return scan_lanes(rows, from, to, lanes, flat, by_region ? regions : 0);
  };
  for (int s = 0; s < count; ++s) {
    search_->kernels->load_rows(search_->x, block_.first + rows[s], 1, row_);
    int lane = 0;
    while (lane < lanes && !rows_are_equal(row_, lane_rows_ + lane * dim, dim)) ++lane;
    const bool asked = lane == lanes && remembered_.is_asked();
    const int64_t known = asked ? remembered_.find(row_) : -1;
    lane_of_[s] = known >= 0 ? -1 : lane;
    if (known >= 0) block_.index[rows[s]] = known;
    if (known >= 0 || lane < lanes) continue;
    if (lanes == kExactLanes || (by_region && codebook.regions.is_apart(regions, order_.needed(s), lanes))) {
      if (!scan(s)) return false;
      regions = 0;
      from = s;
      lane_of_[s] = lanes = 0;
      asked_ = 0;
    }
    asked_ |= unsigned(asked) << lanes;
    if (by_region) regions |= order_.needed(s);
    memcpy(lane_rows_ + lanes++ * dim, row_, size_t(dim) * sizeof(float));
  }
  if (lanes && !scan(count)) return false;
  if (by_region) order_.learn(compared, scanned * codebook.count);
  return true;
}

// The first `dim` values of the rows in lanes.
void ExactSearch::widen_lanes(int lanes, int64_t dim) {
  const int64_t pitch = search_->codebook.dim;
  for (int64_t d = 0; d < dim; ++d)
    for (int lane = 0; lane < kExactLanes; ++lane)
      exact_rows_[d * kExactLanes + lane] = lane < lanes ? double(lane_rows_[lane * pitch + d]) : 0.0;
}

// Rows from .. to - 1 of a queue, which share `lanes` lanes.
bool ExactSearch::scan_lanes(const int* rows, int from, int to, int lanes, bool flat, unsigned regions) {
  if (search_->interruption->requested()) return false;
  const Codebook& codebook = search_->codebook;
  const int64_t dim = codebook.dim;
  int64_t nearest[kExactLanes];
  if (!ensure_scan() || (flat && !search_->codebook.ensure_flat())) return false;
  if (!settle_lanes(lanes, flat && dim > kFlatParts && codebook.has_flat, regions, nearest)) {
    widen_lanes(lanes, dim);
    if (!search_->codebook.ensure_squares()) return false;
    search_->kernels->exact_scan(exact_rows_, codebook.codes, open_, codebook.squares_high, codebook.squares_low,
                                 open_count_, dim, lanes, nearest);
  }
  for (int s = from; s < to; ++s)
    if (lane_of_[s] >= 0) block_.index[rows[s]] = nearest[lane_of_[s]];
  for (int lane = 0; lane < lanes; ++lane)
    if (asked_ >> lane & 1) remembered_.add(lane_rows_ + lane * dim, nearest[lane]);
  return true;
}

bool ExactSearch::ensure_scan() {
  const int64_t count = search_->codebook.count;
  return search_->codebook.ensure_lengths(search_->kernels) &&
         (near_.get() || (scores_.resize((count + kExactLanes * CodeRegions::kMost) * kExactLanes) &&
                          groups_.resize(2 * (count + CodeRegions::kMost)) && open_.resize(count + 1) &&
                          near_.resize(count)));
}

// In float64, and exactly among the codes that it leaves. False, with nothing of use written but these codes, if it
// leaves a row so many that sixteen rows together are the faster way and whole numbers cannot tell.
bool ExactSearch::settle_lanes(int lanes, bool flat, unsigned regions, int64_t* nearest) {
  const Codebook& codebook = search_->codebook;
  const Kernels& kernels = *search_->kernels;
  const int64_t dim = flat ? kFlatParts : codebook.dim;
  widen_lanes(lanes, dim);
  double norms[kExactLanes] = {}, limit[kExactLanes];
  for (int64_t d = 0; d < dim; ++d)
    for (int lane = 0; lane < kExactLanes; ++lane) {
      const double v = exact_rows_[d * kExactLanes + lane];
      norms[lane] += v * v;
    }
  for (double& norm : norms) norm = 1.01 * sqrt(norm * (double(codebook.dim) / double(dim)));
  WideScan scan = {};
  scan.x = exact_rows_;
  int64_t spans[2 * CodeRegions::kMost] = {0, codebook.count};
  scan.spans = spans;
  if (regions) {
    scan.codes = codebook.regions.codes();
    scan.usable = codebook.regions.usable();
    scan.half_squares = codebook.regions.half_squares();
    scan.lengths = codebook.regions.lengths();
    scan.index = codebook.regions.index();
    scan.span_count = codebook.regions.spans(regions, spans);
  } else {
    scan.codes = flat ? codebook.flat.get() : codebook.codes;
    scan.usable = codebook.usable;
    scan.half_squares = codebook.half_squares;
    scan.lengths = codebook.lengths;
    scan.span_count = 1;
  }
  scan.norms = norms;
  scan.error = 1.01 * search_->certificate.float64(codebook.dim);
  scan.count = codebook.count;
  scan.dim = dim;
  scan.l2 = codebook.l2;
  scan.lanes = lanes;
  scan.scores = scores_;
  scan.limit = limit;
  scan.groups = groups_;
  scan.near = near_;
  scan.open = open_;
  open_count_ = kernels.wide_scan(&scan);
  constexpr int kNear = 64;
  int32_t near[kExactLanes][kNear];
  int counts[kExactLanes] = {};
  bool fits = true;
  for (int64_t i = 0; i < open_count_ && fits; ++i)
    for (unsigned bits = near_[open_[i]]; bits; bits &= bits - 1) {
      const int lane = __builtin_ctz(bits);
      fits &= counts[lane] < kNear;
      if (fits) near[lane][counts[lane]++] = open_[i];
    }
  int64_t exact = 0;
  for (int lane = 0; lane < lanes; ++lane)
    if (counts[lane] > 1) exact += divide_up(counts[lane], kExactCodes) * kExactCodes;
  if (!fits || exact * kExactCycles > open_count_ * kFixedCycles) {
    if (settle_in_whole_numbers(lanes, flat, norms, nearest)) return true;
    if (!fits || exact * kExactCycles > open_count_ * kExactScanCycles) return false;
  }
  for (int lane = 0; lane < lanes; ++lane) {
    nearest[lane] = 0;
    if (!counts[lane]) continue;
    nearest[lane] = counts[lane] == 1 ? near[lane][0]
                                      : nearest_of(lane_rows_ + lane * codebook.dim, near[lane], counts[lane]);
  }
  return true;
}

bool ExactSearch::settle_in_whole_numbers(int lanes, bool flat, const double* norms, int64_t* nearest) {
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
    const int unit = fix_row(lane_rows_ + lane * dim, flat ? 1 : dim, codebook.fixed, codebook.l2, fixed_rows_ + lane,
                             factor + lane);
    if (!search_->certificate.score_is_exact(dim, norms[lane], 1.01 * longest, unit)) return false;
    is_narrow &= search_->certificate.ties_fit_32_bits(dim, norms[lane], 1.01 * longest, unit);
  }
  for (int64_t i = 0; is_narrow && i < (flat ? 1 : dim) * kExactLanes; ++i) fixed_rows32_[i] = uint32_t(fixed_rows_[i]);
  FixedScan scan = {};
  scan.x = fixed_rows_;
  scan.x32 = is_narrow ? fixed_rows32_.get() : nullptr;
  scan.codes = flat ? codebook.fixed.sums() : codebook.fixed.values();
  scan.halves = codebook.l2 ? codebook.fixed.halves() : nullptr;
  scan.factor = factor;
  scan.near = near_;
  scan.open = open_;
  scan.open_count = open_count_;
  scan.dim = flat ? 1 : dim;
  scan.lanes = lanes;
  scan.index = index;
  search_->kernels->fixed_scan(&scan);
  memcpy(nearest, index, size_t(lanes) * sizeof index[0]);
  return true;
}

}  // namespace vq_cpu
