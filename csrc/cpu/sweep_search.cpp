#include "cpu/sweep_search.h"

#include <float.h>
#include <math.h>

#include <algorithm>

#include "cpu/search.h"

namespace vq_cpu {
namespace {

constexpr int64_t kCodeBytes = 512 << 10;  // packed codes of a block
constexpr int kMostTile = 64;              // rows of a tile of any instruction set
constexpr int kCandidates = 48;            // of a row, before all codes are scored
constexpr double kListedNs = 15.0;  // what a listed code costs beyond differences, see ExactSearch::queue_long

// Panels of a block.
int64_t code_block(const Kernels& kernels, int64_t dim) {
  const int64_t panels = kCodeBytes / (4 * dim * kernels.panel);
  return panels < 1 ? 1 : panels;
}

}  // namespace

bool SweepSearch::open(Search* search, ExactSearch* exact) {
  search_ = search;
  exact_ = exact;
  const int64_t n = search->block_rows, dim = search->x->dim, tile = search->tile();
  return norm2_.resize(n) && bound_.resize(n) && best_.resize(n) && second_.resize(n) && best_index_.resize(n) &&
         ambiguous_rows_.resize(n) && row_.resize(dim) && compact_.resize(dim * tile) && threshold_.resize(tile) &&
         compact_norm2_.resize(tile) && lane_best_.resize(tile) && lane_second_.resize(tile) &&
         lane_best_index_.resize(tile) && candidates_.resize(tile * kCandidates) && counts_.resize(tile) &&
         squares_.resize(tile * kCandidates) && slack_.resize(tile) && limit_.resize(tile);
}

// packed [tiles][dim][tile] against all codes.
bool SweepSearch::sweep_codes(const float* packed, int rows, float* best, float* second, int32_t* best_index) {
  const Kernels& kernels = *search_->kernels;
  const Codebook& codebook = search_->codebook;
  const int64_t tile = search_->tile(), dim = codebook.dim;
  for (int64_t i = 0; i < divide_up(rows, kernels.lanes) * kernels.lanes; ++i) {
    best[i] = second[i] = -INFINITY;
    best_index[i] = 0;
  }
  const int64_t block = code_block(kernels, dim);
  for (int64_t panel = 0; panel < codebook.panel_count; panel += block) {
    if (search_->interruption->requested()) return false;
    for (int64_t row = 0; row < rows; row += tile) {
      BestSweep sweep = {};
      sweep.x = packed + row * dim;
      sweep.panels = codebook.panels + panel * dim * kernels.panel;
      sweep.bias = codebook.bias + panel * kernels.panel;
      sweep.dim = dim;
      sweep.panel_count = codebook.panel_count - panel < block ? codebook.panel_count - panel : block;
      sweep.first_code = int32_t(panel * kernels.panel);
      sweep.vectors = int(divide_up(rows - row < tile ? rows - row : tile, kernels.lanes));
      sweep.best = best + row;
      sweep.second = second + row;
      sweep.index = best_index + row;
      kernels.sweep(&sweep);
    }
  }
  return true;
}

// Takes what the sweep found for row i, or lists it as ambiguous or to be scanned.
void SweepSearch::certify(const Bound& bound, int i, bool exact) {
  bound_[i] = bound.of_row(norm2_[i]);
  block_.index[i] = best_index_[i];
  block_.nonfinite[i] = 0;
  // Written so that NaN and infinity count as doubt.
  if (exact ? double(best_[i]) - double(second_[i]) > 2.0 * double(bound_[i]) : bound_[i] < INFINITY) return;
  if (bound_[i] < INFINITY) {
    // Without a finite best there is no code to choose: index 0.
    if (best_[i] > -INFINITY) ambiguous_rows_[ambiguous_count_++] = i;
  } else {
    exact_->queue_unbounded(i);
  }
}

bool SweepSearch::run(const RowBlock& block) { return run_all(block, search_->precision == VQ_EXACT); }

// Where float32 decided on less than half of the rows of a block before, it is not asked.
bool SweepSearch::scan_at_once(const RowBlock& block) {
  --skip_;
  block_ = block;
  exact_->start(block);
  for (int i = 0; i < block.n; ++i) exact_->queue_unbounded(i);
  return exact_->scan_queued_rows();
}

bool SweepSearch::scan_queued_rows() {
  if (exact_->queued() > block_.n / 2) skip_ = kSkippedBlocks;
  return exact_->scan_queued_rows();
}

bool SweepSearch::run_all(const RowBlock& block, bool exact) {
  if (skip_ && exact) return scan_at_once(block);
  if (skip_sweep_ && exact) {
    --skip_sweep_;
    return run_ambiguous(block);
  }
  if (!search_->codebook.ensure_panels(search_->kernels)) return false;
  if (!packed_.get() && !packed_.resize(search_->block_rows * search_->x->dim)) return false;
  block_ = block;
  ambiguous_count_ = 0;
  exact_->start(block);
  const int tile = search_->tile();
  for (int row = 0; row < block.n; row += tile)
    search_->kernels->pack_tile(search_->x, block.first + row, block.n - row < tile ? block.n - row : tile,
                                search_->codebook.row_centring(), packed_ + row * search_->x->dim, norm2_ + row);
  if (!sweep_codes(packed_, block.n, best_, second_, best_index_)) return false;
  const Bound bound = search_->certificate.sweep(search_->codebook);
  for (int i = 0; i < block.n; ++i) certify(bound, i, exact);
  if (search_->codebook.l2 && ambiguous_count_ > block.n / 2) skip_sweep_ = kSkippedBlocks;
  return resolve_ambiguous_rows() && scan_queued_rows();
}

bool SweepSearch::run_ambiguous(const RowBlock& block) {
  if (!search_->codebook.l2) return run_all(block, true);
  if (skip_) return scan_at_once(block);
  if (!search_->codebook.ensure_lengths(search_->kernels) || !search_->codebook.ensure_scaled()) return false;
  block_ = block;
  exact_->start(block);
  const int tile = search_->tile();
  if (order_.is_wanted(search_->codebook, block.n)) {
    for (int i = 0; i < block.n; ++i) ambiguous_rows_[i] = i;
    ambiguous_count_ = block.n;
    return compare_by_regions() && scan_queued_rows();
  }
  for (int row = 0; row < block.n; row += tile) {
    const int n = block.n - row < tile ? block.n - row : tile;
    int rows[kMostTile];
    for (int lane = 0; lane < n; ++lane) rows[lane] = row + lane;
    search_->kernels->pack_tile(search_->x, block.first + row, n,
                                Centring{search_->codebook.centring.scale, nullptr}, compact_, compact_norm2_);
    if (!compare_differences(rows, n, 0)) return false;
  }
  return scan_queued_rows();
}

// The ambiguous rows, l2.
bool SweepSearch::compare_by_regions() {
  if (!order_.sort(search_, block_, ambiguous_rows_, ambiguous_count_)) return false;
  const CodeRegions& regions = search_->codebook.regions;
  const int tile = search_->tile();
  int64_t compared = 0;
  for (int first = 0, n; first < ambiguous_count_; first += n) {
    unsigned needed = 0;
    for (n = 0; n < tile && first + n < ambiguous_count_; ++n) {
      if (regions.is_apart(needed, order_.needed(first + n), n)) break;
      needed |= order_.needed(first + n);
    }
    if (!gather_rows(ambiguous_rows_ + first, n) || !compare_differences(ambiguous_rows_ + first, n, needed))
      return false;
    compared += n * regions.size(needed);
  }
  order_.learn(compared, ambiguous_count_ * search_->codebook.count);
  return true;
}

bool SweepSearch::run_rows(const RowBlock& block, const int* rows, int count) {
  block_ = block;
  ambiguous_count_ = 0;
  const int tile = search_->tile();
  if (search_->codebook.l2) {
    for (int i = 0; i < count; ++i) ambiguous_rows_[ambiguous_count_++] = rows[i];
    return resolve_ambiguous_rows() && exact_->scan_queued_rows();
  }
  if (!search_->codebook.ensure_panels(search_->kernels)) return false;
  const Bound bound = search_->certificate.sweep(search_->codebook);
  for (int first = 0; first < count; first += tile) {
    const int n = count - first < tile ? count - first : tile;
    if (!gather_rows(rows + first, n)) return false;
    if (!sweep_codes(compact_, n, lane_best_, lane_second_, lane_best_index_)) return false;
    for (int lane = 0; lane < n; ++lane) {
      const int i = rows[first + lane];
      norm2_[i] = compact_norm2_[lane];
      best_[i] = lane_best_[lane];
      second_[i] = lane_second_[lane];
      best_index_[i] = lane_best_index_[lane];
      certify(bound, i, true);
    }
  }
  return resolve_ambiguous_rows() && exact_->scan_queued_rows();
}

bool SweepSearch::resolve_ambiguous_rows() {
  if (!ambiguous_count_) return true;
  if (!search_->codebook.ensure_lengths(search_->kernels) || !search_->codebook.ensure_scaled()) return false;
  const int tile = search_->tile();
  if (search_->codebook.l2 && ambiguous_count_ > block_.n / 2 &&
      order_.is_wanted(search_->codebook, ambiguous_count_))
    return compare_by_regions();
  bool ok = true;
  for (int first = 0; ok && first < ambiguous_count_; first += tile) {
    const int n = ambiguous_count_ - first < tile ? ambiguous_count_ - first : tile;
    ok = gather_rows(ambiguous_rows_ + first, n) &&
         (search_->codebook.l2 ? compare_differences(ambiguous_rows_ + first, n, 0)
                               : resolve_by_products(ambiguous_rows_ + first, n));
  }
  return ok;
}

// n <= tile rows of the block into the compact tile, scaled. False if there is no memory.
bool SweepSearch::gather_rows(const int* rows, int n) {
  const int64_t dim = search_->x->dim;
  if (!listed_.get() && !listed_.resize(search_->tile() * dim)) return false;
  for (int lane = 0; lane < n; ++lane)
    search_->kernels->load_rows(search_->x, block_.first + rows[lane], 1, listed_ + lane * dim);
  const VqRows view = {listed_, 1, n, dim, n * dim, dim, 1, VQ_FLOAT32};
  search_->kernels->pack_tile(&view, 0, n, Centring{search_->codebook.centring.scale, nullptr}, compact_,
                              compact_norm2_);
  return true;
}

// The tile in compact_ against all codes; cosine, of whose rows no centre is subtracted.
bool SweepSearch::resolve_by_products(const int* rows, int n) {
  const Kernels& kernels = *search_->kernels;
  const Codebook& codebook = search_->codebook;
  const int tile = search_->tile();
  for (int lane = 0; lane < tile; ++lane) {
    counts_[lane] = 0;
    threshold_[lane] = INFINITY;
    if (lane >= n) continue;
    const int i = rows[lane];
    // Rounded down: the nearest code has a score of at least this.
    threshold_[lane] = nextafterf(float(double(best_[i]) - 2.0 * double(bound_[i])), -INFINITY);
  }
  CandidateSweep sweep = {};
  sweep.x = compact_;
  sweep.dim = codebook.dim;
  sweep.vectors = int(divide_up(n, kernels.lanes));
  sweep.threshold = threshold_;
  sweep.candidates = candidates_;
  sweep.counts = counts_;
  sweep.capacity = kCandidates;
  const int64_t block = code_block(kernels, codebook.dim);
  for (int64_t panel = 0; panel < codebook.panel_count; panel += block) {
    if (search_->interruption->requested()) return false;
    sweep.panels = codebook.panels + panel * codebook.dim * kernels.panel;
    sweep.bias = codebook.bias + panel * kernels.panel;
    sweep.panel_count = codebook.panel_count - panel < block ? codebook.panel_count - panel : block;
    sweep.first_code = int32_t(panel * kernels.panel);
    kernels.collect(&sweep);
  }
  for (int lane = 0; lane < n; ++lane) {
    if (counts_[lane] > kCandidates)
      exact_->queue_for_scan(rows[lane]);
    else if (!exact_->queue_long(rows[lane], counts_[lane] * kListedNs))
      choose(rows[lane], lane, candidates_ + lane * kCandidates, counts_[lane]);
  }
  return true;
}

// The tile in compact_ against the codes of some regions; 0: all codes.
bool SweepSearch::compare_differences(const int* rows, int n, unsigned regions) {
  const Kernels& kernels = *search_->kernels;
  const Codebook& codebook = search_->codebook;
  for (int lane = 0; lane < search_->tile(); ++lane) {
    counts_[lane] = 0;
    limit_[lane] = lane < n ? FLT_MAX : -1.0f;  // of no row nothing is near
    slack_[lane] = lane < n ? search_->certificate.difference_slack(codebook.dim, compact_norm2_[lane]) : 0.0f;
  }
  DifferenceSweep sweep = {};
  sweep.x = compact_;
  sweep.stand_in = codebook.centre;
  sweep.dim = codebook.dim;
  sweep.vectors = int(divide_up(n, kernels.lanes));
  sweep.factor = search_->certificate.difference_factor(codebook.dim);
  sweep.slack = slack_;
  sweep.limit = limit_;
  sweep.candidates = candidates_;
  sweep.squares = squares_;
  sweep.counts = counts_;
  sweep.capacity = kCandidates;
  const int64_t block = code_block(kernels, codebook.dim) * kernels.panel;
  int64_t spans[2 * CodeRegions::kMost] = {0, codebook.count};
  const int span_count = regions ? codebook.regions.spans(regions, spans) : 1;
  const float* codes = regions ? codebook.regions.scaled() : codebook.scaled;
  const uint8_t* usable = regions ? codebook.regions.usable() : codebook.usable.get();
  for (int span = 0; span < span_count; ++span) {
    const int64_t end = spans[2 * span + 1];
    for (int64_t first = spans[2 * span]; first < end; first += block) {
      if (search_->interruption->requested()) return false;
      sweep.codes = codes + first * codebook.dim;
      sweep.usable = usable + first;
      sweep.count = end - first < block ? end - first : block;
      sweep.first_code = int32_t(first);
      kernels.sweep_differences(&sweep);
    }
  }
  for (int lane = 0; lane < n; ++lane) {
    const int i = rows[lane];
    block_.nonfinite[i] = 0;
    block_.index[i] = 0;
    int32_t* candidates = candidates_ + lane * kCandidates;
    int near = 0;
    for (int c = 0; c < counts_[lane] && c < kCandidates; ++c)
      if (squares_[lane * kCandidates + c] <= limit_[lane])
        candidates[near++] = regions ? codebook.regions.index()[candidates[c]] : candidates[c];
    if (regions) std::sort(candidates, candidates + near);
    // Nothing is near where squares overflow, and where row or codes are not finite.
    if (!near || !(compact_norm2_[lane] < INFINITY))
      exact_->queue_unbounded(i);
    else if (counts_[lane] > kCandidates)
      exact_->queue_for_scan(i);
    else if (!exact_->queue_long(i, near * kListedNs))
      choose(i, lane, candidates, near);
  }
  return true;
}

void SweepSearch::choose(int i, int lane, const int32_t* candidates, int n) {
  block_.index[i] = candidates[0];
  if (n < 2) return;
  const Codebook& codebook = search_->codebook;
  search_->kernels->load_rows(search_->x, block_.first + i, 1, row_);
  const double norm = (1.01 * sqrt(double(compact_norm2_[lane])) + sqrt(double(codebook.dim)) * 0x1p-74) /
                      double(codebook.centring.scale);
  exact_->choose_listed(i, row_, norm, candidates, n);
}

}  // namespace vq_cpu
