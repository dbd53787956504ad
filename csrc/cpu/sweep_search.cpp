#include "cpu/sweep_search.h"

#include <math.h>

#include "cpu/search.h"

namespace vq_cpu {
namespace {

constexpr int64_t kCodeBytes = 512 << 10;  // packed codes of a block
constexpr int kCandidates = 32;            // of a row, before all codes are scored

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
  return norm2_.resize(n) && bound_.resize(n) && best_.resize(n) && second_.resize(n) &&
         best_index_.resize(n) && ambiguous_rows_.resize(n) && row_.resize(dim) &&
         compact_.resize(dim * tile) && threshold_.resize(tile) && compact_norm2_.resize(tile) &&
         lane_best_.resize(tile) &&
         lane_second_.resize(tile) && lane_best_index_.resize(tile) &&
         candidates_.resize(tile * kCandidates) && counts_.resize(tile);
}

// packed [tiles][dim][tile] against all codes.
bool SweepSearch::sweep_codes(const float* packed, int rows, float* best, float* second,
                              int32_t* best_index) {
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
void SweepSearch::certify(const Bound& bound, int i) {
  bound_[i] = bound.of_row(norm2_[i]);
  block_.index[i] = best_index_[i];
  block_.nonfinite[i] = 0;
  // Written so that NaN and infinity count as doubt.
  if (search_->precision == VQ_EXACT ? double(best_[i]) - double(second_[i]) > 2.0 * double(bound_[i])
                                     : bound_[i] < INFINITY)
    return;
  if (bound_[i] < INFINITY) {
    // Without a finite best there is no code to choose: index 0.
    if (best_[i] > -INFINITY) ambiguous_rows_[ambiguous_count_++] = i;
  } else {
    exact_->queue_unbounded(i);
  }
}

bool SweepSearch::run(const RowBlock& block) {
  if (!search_->codebook.ensure_panels(search_->kernels)) return false;
  if (!packed_.get() && !packed_.resize(search_->block_rows * search_->x->dim)) return false;
  block_ = block;
  ambiguous_count_ = 0;
  exact_->start(block);
  const int tile = search_->tile();
  for (int row = 0; row < block.n; row += tile)
    search_->kernels->pack_tile(search_->x, block.first + row, block.n - row < tile ? block.n - row : tile,
                                Centring{1.0f, search_->codebook.row_centre()}, packed_ + row * search_->x->dim,
                                norm2_ + row);
  if (!sweep_codes(packed_, block.n, best_, second_, best_index_)) return false;
  const Bound bound = search_->certificate.sweep(search_->codebook);
  for (int i = 0; i < block.n; ++i) certify(bound, i);
  return resolve_ambiguous_rows() && exact_->scan_queued_rows();
}

bool SweepSearch::run_rows(const RowBlock& block, const int* rows, int count) {
  if (!search_->codebook.ensure_panels(search_->kernels)) return false;
  block_ = block;
  ambiguous_count_ = 0;
  const int tile = search_->tile();
  const Bound bound = search_->certificate.sweep(search_->codebook);
  for (int first = 0; first < count; first += tile) {
    const int n = count - first < tile ? count - first : tile;
    gather_rows(rows + first, n, compact_norm2_);
    if (!sweep_codes(compact_, n, lane_best_, lane_second_, lane_best_index_)) return false;
    for (int lane = 0; lane < n; ++lane) {
      const int i = rows[first + lane];
      norm2_[i] = compact_norm2_[lane];
      best_[i] = lane_best_[lane];
      second_[i] = lane_second_[lane];
      best_index_[i] = lane_best_index_[lane];
      certify(bound, i);
    }
  }
  return resolve_ambiguous_rows() && exact_->scan_queued_rows();
}

bool SweepSearch::resolve_ambiguous_rows() {
  const int tile = search_->tile();
  bool ok = true;
  for (int first = 0; ok && first < ambiguous_count_; first += tile)
    ok = resolve_candidates(ambiguous_rows_ + first,
                            ambiguous_count_ - first < tile ? ambiguous_count_ - first : tile);
  return ok;
}

// n <= tile rows of the block into the compact tile.
void SweepSearch::gather_rows(const int* rows, int n, float* norm2) {
  const int64_t tile = search_->tile(), dim = search_->x->dim;
  const float* centre = search_->codebook.row_centre();
  for (int64_t i = 0; i < dim * tile; ++i) compact_[i] = 0.0f;
  for (int lane = 0; lane < n; ++lane) {
    search_->kernels->load_rows(search_->x, block_.first + rows[lane], 1, row_);
    for (int64_t d = 0; d < dim; ++d) compact_[d * tile + lane] = centre ? row_[d] - centre[d] : row_[d];
  }
  for (int lane = 0; lane < tile; ++lane) norm2[lane] = 0.0f;
  for (int64_t d = 0; d < dim; ++d) {
    const float* values = compact_ + d * tile;
    for (int lane = 0; lane < tile; ++lane) norm2[lane] += values[lane] * values[lane];
  }
}

bool SweepSearch::resolve_candidates(const int* rows, int n) {
  const Kernels& kernels = *search_->kernels;
  const Codebook& codebook = search_->codebook;
  const int tile = search_->tile();
  gather_rows(rows, n, compact_norm2_);
  for (int lane = 0; lane < tile; ++lane) {
    counts_[lane] = 0;
    threshold_[lane] = INFINITY;
  }
  for (int lane = 0; lane < n; ++lane) {
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
    else
      exact_->choose_exactly(rows[lane], candidates_ + lane * kCandidates, counts_[lane]);
  }
  return true;
}

}  // namespace vq_cpu
