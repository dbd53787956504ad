#include "cpu/matrix_search.h"

#include <float.h>
#include <math.h>

#include "cpu/search.h"

namespace vq_cpu {
namespace {

constexpr int64_t kCodeBytes = 512 << 10;  // packed codes of a block
constexpr int kCandidates = 48;            // of a row, before it is given up
constexpr int kHalfGroup = kMatrixRows / 2;

}  // namespace

bool MatrixSearch::open(Search* search, ExactSearch* exact, SweepSearch* sweep, NarrowSearch* narrow,
                        NarrowSearch* finer) {
  search_ = search;
  exact_ = exact;
  sweep_ = sweep;
  narrow_ = narrow;
  finer_ = finer;
  const int64_t n = divide_up(search->block_rows, kMatrixRows) * kMatrixRows, dim = search->x->dim;
  return given_up_rows_.resize(n) && packed_.resize(dim * search->tile()) && norm2_.resize(n) &&
         error2_.resize(n) && margin_.resize(n) && best_.resize(n) &&
         groups_.resize(n * search->codebook.matrix_steps * kMatrixDepth) &&
         scores_.resize(n * kCandidates) && candidates_.resize(n * kCandidates) && counts_.resize(n) &&
         scratch_.resize(kMatrixScratch) && row_.resize(dim);
}

bool MatrixSearch::run(const RowBlock& block) {
  // Not between the blocks of codes: whoever is asked may use the tiles for a search of their own.
  if (search_->interruption->requested()) return false;
  if (skip_) {
    --skip_;
    return narrow_->run(block);
  }
  block_ = block;
  given_up_count_ = 0;
  exact_->start(block);
  pack_groups();
  search_block();
  for (int i = 0; i < block.n; ++i) resolve_row(i);
  return resolve_given_up() && exact_->scan_queued_rows();
}

void MatrixSearch::pack_groups() {
  const int tile = search_->tile(), n = block_.n;
  const int64_t dim = search_->x->dim, group = search_->codebook.matrix_steps * kMatrixDepth * kMatrixRows;
  int vector = 0;
  for (int row = 0; row < n; row += tile) {
    const int rows = n - row < tile ? n - row : tile;
    search_->kernels->pack_tile(search_->x, block_.first + row, rows, search_->codebook.row_centring(), packed_,
                                norm2_ + row);
    for (int lane = 0; lane < rows; lane += kHalfGroup, ++vector)
      search_->first.matrix->pack_rows(packed_ + lane, tile, dim, vector % 2, groups_ + vector / 2 * group,
                                 error2_ + vector * kHalfGroup);
  }
  // An odd half group is multiplied with whatever its memory holds, but never looked at.
  if (vector % 2)
    for (int64_t i = 0; i < group; ++i) {
      uint16_t* last = groups_ + vector / 2 * group;
      if (i / (group / search_->codebook.matrix_steps / 2) % 2) last[i] = 0;
    }
}

void MatrixSearch::search_block() {
  const MatrixKernels& matrix = *search_->first.matrix;
  const Codebook& codebook = search_->codebook;
  const int64_t groups = divide_up(block_.n, kMatrixRows);
  const int64_t block = codebook.matrix_steps * kMatrixDepth * kMatrixCodes;
  const Bound bound = search_->certificate.matrix(codebook);
  for (int i = 0; i < groups * kMatrixRows; ++i) {
    // A margin of -inf shuts a row out: padding, and rows that have no bound.
    const float margin = i < block_.n ? bound.of_row(norm2_[i], error2_[i]) : INFINITY;
    margin_[i] = !(margin < INFINITY) ? -INFINITY : search_->precision == VQ_FAST ? 0.0f : 2.0f * margin;
    best_[i] = -FLT_MAX;
    counts_[i] = 0;
  }
  constexpr int64_t kChunkBlocks = kMatrixChunk / kMatrixCodes;
  int64_t chunk = kCodeBytes / (2 * block * kChunkBlocks) * kChunkBlocks;
  if (chunk < 1) chunk = kChunkBlocks;
  matrix.configure_tiles();
  for (int64_t first = 0; first < codebook.matrix_blocks; first += chunk) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t row = g * kMatrixRows;
      MatrixSweep sweep = {};
      sweep.x = groups_ + row * codebook.matrix_steps * kMatrixDepth;
      sweep.codes = codebook.matrix_codes + first * block;
      sweep.bias = codebook.matrix_bias + first * kMatrixCodes;
      sweep.steps = codebook.matrix_steps;
      sweep.blocks = codebook.matrix_blocks - first < chunk ? codebook.matrix_blocks - first : chunk;
      sweep.first_code = int32_t(first * kMatrixCodes);
      sweep.margin = margin_ + row;
      sweep.best = best_ + row;
      sweep.candidates = candidates_ + row * kCandidates;
      sweep.scores = scores_ + row * kCandidates;
      sweep.counts = counts_ + row;
      sweep.capacity = kCandidates;
      sweep.scratch = scratch_;
      matrix.sweep(&sweep);
    }
  }
  matrix.release_tiles();
}

void MatrixSearch::resolve_row(int i) {
  const Codebook& codebook = search_->codebook;
  int64_t& index = block_.index[i];
  block_.nonfinite[i] = 0;
  index = 0;
  // Also a row without a bound: one code far out is enough to take it from all rows.
  if (margin_[i] == -INFINITY || counts_[i] > kCandidates) {
    given_up_rows_[given_up_count_++] = i;
    return;
  }
  int32_t* candidates = candidates_ + int64_t(i) * kCandidates;
  const float* scores = scores_ + int64_t(i) * kCandidates;
  const float threshold = best_[i] - margin_[i];
  int near = 0;
  for (int c = 0; c < counts_[i]; ++c)
    if (scores[c] >= threshold) candidates[near++] = candidates[c];
  if (near) index = candidates[0];
  if (near < 2 || search_->precision == VQ_FAST) return;
  search_->kernels->load_rows(search_->x, block_.first + i, 1, row_);
  if (near >= ExactSearch::kListed)
    return exact_->choose_listed(i, row_, Certificate::matrix_length(codebook, norm2_[i]), candidates, near);
  double best = INFINITY, second = INFINITY, score[kCandidates];
  for (int c = 0; c < near; ++c) {
    score[c] = search_->first.matrix->score(row_, codebook.codes + candidates[c] * codebook.dim, codebook.dim,
                                      codebook.l2);
    if (score[c] < best) {
      second = best;
      best = score[c];
      index = candidates[c];
    } else if (score[c] < second) {
      second = score[c];
    }
  }
  const double limit = 2.0 * search_->certificate.matrix_candidate(codebook, norm2_[i]);
  if (second - best > limit) return;
  int tied = 0;
  for (int c = 0; c < near; ++c)
    if (!(score[c] - best > limit)) candidates[tied++] = candidates[c];
  exact_->choose_exactly(i, candidates, tied);
}

bool MatrixSearch::resolve_given_up() {
  if (!given_up_count_) return true;
  if (!ensure_narrow()) return false;
  if (!narrow_) return sweep_->run_rows(block_, given_up_rows_, given_up_count_);
  // Not for a fast search, whose result for a row must not depend on the rows beside it.
  if (search_->precision != VQ_FAST && given_up_count_ > block_.n / 2) skip_ = kSkippedBlocks;
  return narrow_->run_rows(block_, given_up_rows_, given_up_count_);
}

// Opens the narrow search, or goes without one.
bool MatrixSearch::ensure_narrow() {
  if (!narrow_ || narrow_is_open_) return true;
  if (!search_->ensure_narrow()) return false;
  if (!search_->narrow.bounded())
    narrow_ = nullptr;
  else
    narrow_is_open_ = narrow_->open(search_, search_->narrow, exact_, sweep_, finer_);
  return !narrow_ || narrow_is_open_;
}

}  // namespace vq_cpu
