// A block of rows against all codes: float32 first, exactly where the bound leaves a doubt.
//
// Rows stay packed in the second-level cache while the codes pass in blocks; each tile of rows meets
// each block of codes once. Doubtful rows are gathered into tiles of their own and swept a second time
// for the codes within the bound, which are then scored exactly; where those are too many, or float32
// could overflow, all codes are.
#include "cpu/search.h"

#include <math.h>

#include "cpu/exact.h"

namespace {

constexpr int64_t ROW_BYTES = 256 << 10;   // packed rows of a block
constexpr int64_t CODE_BYTES = 512 << 10;  // packed codes of a block
constexpr int MOST_ROWS = 1024;            // of a block
constexpr int CANDIDATES = 32;             // of a row, before all codes are scored
// Below this, padding the dimensions to the depth of a tile costs more than the tile unit gains.
constexpr int64_t TILE_DIMENSIONS = 16;

bool row_is_finite(const float* row, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d)
    if (!(fabsf(row[d]) < INFINITY)) return false;
  return true;
}

}  // namespace

Search::Search(const VqRows* x, int precision)
    : kernels(vq_kernels_in_use()),
      tiles(x->d >= TILE_DIMENSIONS ? vq_tile_kernels_in_use() : nullptr),
      x(x),
      precision(precision) {
  int64_t most = ROW_BYTES / (4 * x->d);
  if (most > MOST_ROWS) most = MOST_ROWS;
  const int64_t share = divide_up(rows(), 64);  // enough blocks for many threads
  if (share < most) most = share;
  block_rows = divide_up(most < 1 ? 1 : most, tile()) * tile();
}

bool Search::prepare(const VqCodes* codes, int metric, int threads) {
  return codebook.prepare(codes, metric, kernels, tiles, threads);
}

bool BlockSearch::open(Search* search) {
  search_ = search;
  const int64_t n = search->block_rows, d = search->x->d, tile = search->tile();
  return norm2_.resize(n) && bound_.resize(n) && best_.resize(n) && second_.resize(n) && found_.resize(n) &&
         open_.resize(n) && scan_.resize(n) && row_.resize(d) && compact_.resize(d * tile) &&
         threshold_.resize(tile) && lane_best_.resize(tile) && lane_second_.resize(tile) &&
         lane_found_.resize(tile) && candidates_.resize(tile * CANDIDATES) && counts_.resize(tile) &&
         exact_rows_.resize(d * VQ_EXACT_LANES) && (search->tiles ? open_tiles() : packed_.resize(n * d));
}

bool BlockSearch::run(int64_t first, int n, int64_t* index, uint8_t* nonfinite) {
  first_ = first;
  n_ = n;
  index_ = index;
  nonfinite_ = nonfinite;
  open_count_ = scan_count_ = 0;
  return search_->tiles ? tile_block() : sweep_block();
}

// packed [tiles][d][tile] against all codes.
void BlockSearch::sweep_codes(const float* packed, int rows, float* best, float* second, int32_t* found) {
  const VqKernels& kernels = *search_->kernels;
  const Codebook& codebook = search_->codebook;
  const int64_t tile = search_->tile(), d = codebook.d;
  for (int64_t i = 0; i < divide_up(rows, kernels.lanes) * kernels.lanes; ++i) {
    best[i] = second[i] = -INFINITY;
    found[i] = 0;
  }
  int64_t block = CODE_BYTES / (4 * d * kernels.panel);
  if (block < 1) block = 1;
  for (int64_t panel = 0; panel < codebook.panel_count; panel += block) {
    for (int64_t row = 0; row < rows; row += tile) {
      VqSweep sweep = {};
      sweep.x = packed + row * d;
      sweep.panels = codebook.panels + panel * d * kernels.panel;
      sweep.bias = codebook.bias + panel * kernels.panel;
      sweep.d = d;
      sweep.panel_count = codebook.panel_count - panel < block ? codebook.panel_count - panel : block;
      sweep.first_code = int32_t(panel * kernels.panel);
      sweep.vectors = int(divide_up(rows - row < tile ? rows - row : tile, kernels.lanes));
      sweep.best = best + row;
      sweep.second = second + row;
      sweep.index = found + row;
      kernels.sweep(&sweep);
    }
  }
}

// Takes what the sweep found for row i, or lists it as open or to be scanned.
void BlockSearch::certify(const Bound& limit, int i) {
  bound_[i] = limit.of_row(norm2_[i]);
  index_[i] = found_[i];
  nonfinite_[i] = 0;
  // Written so that NaN and infinity count as doubt.
  if (search_->precision == VQ_EXACT ? double(best_[i]) - double(second_[i]) > 2.0 * double(bound_[i])
                                     : bound_[i] < INFINITY)
    return;
  if (bound_[i] < INFINITY) {
    // Without a finite best there is no code to choose: index 0.
    if (best_[i] > -INFINITY) open_[open_count_++] = i;
  } else {
    list_unbounded(i);
  }
}

// Row i holds NaN or infinity, or float32 could overflow.
void BlockSearch::list_unbounded(int i) {
  search_->kernels->load_rows(search_->x, first_ + i, 1, row_);
  nonfinite_[i] = !row_is_finite(row_, search_->x->d);
  if (nonfinite_[i])
    index_[i] = 0;
  else
    scan_[scan_count_++] = i;
}

bool BlockSearch::sweep_block() {
  const int tile = search_->tile();
  for (int row = 0; row < n_; row += tile)
    search_->kernels->pack_tile(search_->x, first_ + row, n_ - row < tile ? n_ - row : tile,
                                search_->codebook.row_centre(), packed_ + row * search_->x->d, norm2_ + row);
  sweep_codes(packed_, n_, best_, second_, found_);
  const Bound limit = bound(search_->codebook);
  for (int i = 0; i < n_; ++i) certify(limit, i);
  return settle();
}

bool BlockSearch::settle() {
  const int tile = search_->tile();
  for (int o = 0; o < open_count_; o += tile)
    settle_candidates(open_ + o, open_count_ - o < tile ? open_count_ - o : tile);
  open_count_ = 0;
  return settle_by_scan();
}

// n <= tile rows of the block into the compact tile.
void BlockSearch::gather_rows(const int* rows, int n) {
  const int64_t tile = search_->tile(), d = search_->x->d;
  const float* centre = search_->codebook.row_centre();
  for (int64_t i = 0; i < d * tile; ++i) compact_[i] = 0.0f;
  for (int lane = 0; lane < n; ++lane) {
    search_->kernels->load_rows(search_->x, first_ + rows[lane], 1, row_);
    for (int64_t c = 0; c < d; ++c) compact_[c * tile + lane] = centre ? row_[c] - centre[c] : row_[c];
  }
}

void BlockSearch::settle_candidates(const int* rows, int n) {
  const VqKernels& kernels = *search_->kernels;
  const Codebook& codebook = search_->codebook;
  const int tile = search_->tile();
  gather_rows(rows, n);
  for (int lane = 0; lane < tile; ++lane) {
    counts_[lane] = 0;
    threshold_[lane] = INFINITY;
  }
  for (int lane = 0; lane < n; ++lane) {
    const int i = rows[lane];
    // Rounded down: the nearest code has a score of at least this.
    threshold_[lane] = nextafterf(float(double(best_[i]) - 2.0 * double(bound_[i])), -INFINITY);
  }
  VqSweep sweep = {};
  sweep.x = compact_;
  sweep.panels = codebook.panels;
  sweep.bias = codebook.bias;
  sweep.d = codebook.d;
  sweep.panel_count = codebook.panel_count;
  sweep.vectors = int(divide_up(n, kernels.lanes));
  sweep.threshold = threshold_;
  sweep.candidates = candidates_;
  sweep.counts = counts_;
  sweep.capacity = CANDIDATES;
  kernels.collect(&sweep);
  for (int lane = 0; lane < n; ++lane) {
    if (counts_[lane] > CANDIDATES)
      scan_[scan_count_++] = rows[lane];
    else
      take_exact_best(rows[lane], candidates_ + lane * CANDIDATES, counts_[lane]);
  }
}

// candidates in ascending order, so that a tie keeps the lowest.
void BlockSearch::take_exact_best(int i, const int32_t* candidates, int n) {
  const Codebook& codebook = search_->codebook;
  search_->kernels->load_rows(search_->x, first_ + i, 1, row_);
  ExactScore best = {INFINITY, INFINITY};
  for (int c = 0; c < n; ++c) {
    const int64_t j = candidates[c];
    const ExactScore score = exact_score(row_, codebook.codes + j * codebook.d, codebook.d, codebook.l2);
    if (score < best) {
      best = score;
      index_[i] = j;
    }
  }
}

bool BlockSearch::settle_by_scan() {
  if (!scan_count_) return true;
  Codebook& codebook = search_->codebook;
  if (!codebook.need_squares()) return false;
  const int64_t d = codebook.d;
  for (int s = 0; s < scan_count_; s += VQ_EXACT_LANES) {
    const int n = scan_count_ - s < VQ_EXACT_LANES ? scan_count_ - s : int(VQ_EXACT_LANES);
    for (int64_t i = 0; i < d * VQ_EXACT_LANES; ++i) exact_rows_[i] = 0.0;
    for (int lane = 0; lane < n; ++lane) {
      search_->kernels->load_rows(search_->x, first_ + scan_[s + lane], 1, row_);
      for (int64_t c = 0; c < d; ++c) exact_rows_[c * VQ_EXACT_LANES + lane] = row_[c];
    }
    int64_t found[VQ_EXACT_LANES];
    search_->kernels->exact_scan(exact_rows_, codebook.codes, codebook.usable, codebook.squares_high,
                                 codebook.squares_low, codebook.k, d, found);
    for (int lane = 0; lane < n; ++lane) index_[scan_[s + lane]] = found[lane];
  }
  scan_count_ = 0;
  return true;
}
