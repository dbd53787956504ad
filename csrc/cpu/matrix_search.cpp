// A block of rows against all codes with a matrix unit: bfloat16 first, then float64, then exactly.
//
// The first pass is so much faster than float32 that its wide error bound pays: it leaves a few codes a
// row, of which float64 rules out all but ties. A row that it leaves more than a list of is done again
// in float32.
#include <float.h>
#include <math.h>

#include "cpu/search.h"

namespace {

constexpr int64_t CODE_BYTES = 512 << 10;  // packed codes of a block
constexpr int CANDIDATES = 48;             // of a row, before it is done again in float32
constexpr int HALF = VQ_TILE_ROWS / 2;

}  // namespace

bool BlockSearch::open_tiles() {
  const int64_t n = divide_up(search_->block_rows, VQ_TILE_ROWS) * VQ_TILE_ROWS, d = search_->x->d;
  return packed_.resize(d * search_->tile()) && error2_.resize(n) && margin_.resize(n) &&
         tile_best_.resize(n) && tile_rows_.resize(n * search_->codebook.tile_steps * VQ_TILE_DEPTH) &&
         tile_scores_.resize(n * CANDIDATES) && tile_candidates_.resize(n * CANDIDATES) &&
         tile_counts_.resize(n) && scratch_.resize(VQ_TILE_SCRATCH);
}

void BlockSearch::pack_groups() {
  const int tile = search_->tile();
  const int64_t d = search_->x->d, group = search_->codebook.tile_steps * VQ_TILE_DEPTH * VQ_TILE_ROWS;
  int vector = 0;
  for (int row = 0; row < n_; row += tile) {
    const int n = n_ - row < tile ? n_ - row : tile;
    search_->kernels->pack_tile(search_->x, first_ + row, n, search_->codebook.row_centre(), packed_,
                                norm2_ + row);
    for (int lane = 0; lane < n; lane += HALF, ++vector)
      search_->tiles->pack_rows(packed_ + lane, tile, d, vector % 2, tile_rows_ + vector / 2 * group,
                                error2_ + vector * HALF);
  }
  // An odd half group is multiplied with whatever its memory holds, but never looked at.
  if (vector % 2)
    for (int64_t i = 0; i < group; ++i) {
      uint16_t* last = tile_rows_ + vector / 2 * group;
      if (i / (group / search_->codebook.tile_steps / 2) % 2) last[i] = 0;
    }
}

bool BlockSearch::tile_block() {
  const VqTileKernels& tiles = *search_->tiles;
  const Codebook& codebook = search_->codebook;
  pack_groups();
  const int64_t groups = divide_up(n_, VQ_TILE_ROWS), block = codebook.tile_steps * VQ_TILE_DEPTH * VQ_TILE_CODES;
  const Bound limit = tile_bound(codebook);
  for (int i = 0; i < groups * VQ_TILE_ROWS; ++i) {
    // A margin of -inf shuts a row out: padding, and rows that have no bound.
    const float margin = i < n_ ? limit.of_row(norm2_[i], error2_[i]) : INFINITY;
    margin_[i] = !(margin < INFINITY) ? -INFINITY : search_->precision == VQ_FAST ? 0.0f : 2.0f * margin;
    tile_best_[i] = -FLT_MAX;
    tile_counts_[i] = 0;
  }
  int64_t chunk = CODE_BYTES / (2 * block * VQ_TILE_CHUNK / VQ_TILE_CODES) * (VQ_TILE_CHUNK / VQ_TILE_CODES);
  if (chunk < 1) chunk = VQ_TILE_CHUNK / VQ_TILE_CODES;
  tiles.enter();
  for (int64_t first = 0; first < codebook.tile_blocks; first += chunk) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t row = g * VQ_TILE_ROWS;
      VqTileSweep sweep = {};
      sweep.x = tile_rows_ + row * codebook.tile_steps * VQ_TILE_DEPTH;
      sweep.codes = codebook.tile_codes + first * block;
      sweep.bias = codebook.tile_bias + first * VQ_TILE_CODES;
      sweep.steps = codebook.tile_steps;
      sweep.blocks = codebook.tile_blocks - first < chunk ? codebook.tile_blocks - first : chunk;
      sweep.first_code = int32_t(first * VQ_TILE_CODES);
      sweep.margin = margin_ + row;
      sweep.best = tile_best_ + row;
      sweep.candidates = tile_candidates_ + row * CANDIDATES;
      sweep.scores = tile_scores_ + row * CANDIDATES;
      sweep.counts = tile_counts_ + row;
      sweep.capacity = CANDIDATES;
      sweep.scratch = scratch_;
      tiles.sweep(&sweep);
    }
  }
  tiles.leave();
  for (int i = 0; i < n_; ++i) tile_settle(i);
  return redo_rows() && settle_by_scan();
}

void BlockSearch::tile_settle(int i) {
  const Codebook& codebook = search_->codebook;
  nonfinite_[i] = 0;
  index_[i] = 0;
  if (margin_[i] == -INFINITY) return list_unbounded(i);
  if (tile_counts_[i] > CANDIDATES) {
    open_[open_count_++] = i;
    return;
  }
  int32_t* candidates = tile_candidates_ + int64_t(i) * CANDIDATES;
  const float* scores = tile_scores_ + int64_t(i) * CANDIDATES;
  const float threshold = tile_best_[i] - margin_[i];
  int kept = 0;
  for (int c = 0; c < tile_counts_[i]; ++c)
    if (scores[c] >= threshold) candidates[kept++] = candidates[c];
  if (kept) index_[i] = candidates[0];
  if (kept < 2 || search_->precision == VQ_FAST) return;
  search_->kernels->load_rows(search_->x, first_ + i, 1, row_);
  double best = INFINITY, second = INFINITY, score[CANDIDATES];
  for (int c = 0; c < kept; ++c) {
    score[c] = search_->tiles->score(row_, codebook.codes + candidates[c] * codebook.d, codebook.d, codebook.l2);
    if (score[c] < best) {
      second = best;
      best = score[c];
      index_[i] = candidates[c];
    } else if (score[c] < second) {
      second = score[c];
    }
  }
  const double limit = 2.0 * score_bound(codebook, norm2_[i]);
  if (second - best > limit) return;
  int tied = 0;
  for (int c = 0; c < kept; ++c)
    if (!(score[c] - best > limit)) candidates[tied++] = candidates[c];
  take_exact_best(i, candidates, tied);
}

// The open rows in float32.
bool BlockSearch::redo_rows() {
  if (!open_count_) return true;
  if (!search_->codebook.need_panels(search_->kernels)) return false;
  const int tile = search_->tile(), count = open_count_;
  const Bound limit = bound(search_->codebook);
  open_count_ = 0;  // certify() lists at most as many rows as were read before
  for (int o = 0; o < count; o += tile) {
    int rows[VQ_MOST_TILE_ROWS];
    const int n = count - o < tile ? count - o : tile;
    for (int lane = 0; lane < n; ++lane) rows[lane] = open_[o + lane];
    gather_rows(rows, n);
    sweep_codes(compact_, n, lane_best_, lane_second_, lane_found_);
    for (int lane = 0; lane < n; ++lane) {
      best_[rows[lane]] = lane_best_[lane];
      second_[rows[lane]] = lane_second_[lane];
      found_[rows[lane]] = lane_found_[lane];
      certify(limit, rows[lane]);
    }
  }
  return settle();
}
