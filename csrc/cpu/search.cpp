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
constexpr int CANDIDATES = 32;             // of a row, before all codes are scored

int64_t tile_of(const VqKernels* kernels) { return int64_t(kernels->lanes) * kernels->vectors; }

bool row_is_finite(const float* row, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d)
    if (!(fabsf(row[d]) < INFINITY)) return false;
  return true;
}

}  // namespace

Search::Search(const VqKernels* kernels, Codebook* codebook, const VqRows* x, int precision)
    : kernels(kernels), codebook(codebook), x(x), precision(precision) {
  const int64_t tile = tile_of(kernels), row_bytes = 4 * (x->d > 0 ? x->d : 1);
  int64_t most = ROW_BYTES / row_bytes;
  if (most > 1024) most = 1024;
  const int64_t share = divide_up(rows(), 64);  // enough blocks for many threads
  block_rows = divide_up((share < most ? share : most) < 1 ? 1 : (share < most ? share : most), tile) * tile;
}

bool SearchScratch::resize(const Search& search) {
  const int64_t n = search.block_rows, d = search.x->d, tile = tile_of(search.kernels);
  return packed_.resize(n * d) && norm2_.resize(n) && best_.resize(n) && second_.resize(n) &&
         bound_.resize(n) && index_.resize(n) && open_.resize(n) && scan_.resize(n) && row_.resize(d) &&
         compact_.resize(d * tile) && threshold_.resize(tile) && candidates_.resize(tile * CANDIDATES) &&
         counts_.resize(tile) && exact_rows_.resize(d * VQ_EXACT_LANES);
}

void SearchScratch::sweep_all(const Search& search, int n) {
  const VqKernels& kernels = *search.kernels;
  const Codebook& codebook = *search.codebook;
  const int64_t tile = tile_of(&kernels), d = codebook.d;
  for (int i = 0; i < n; ++i) {
    best_[i] = second_[i] = -INFINITY;
    index_[i] = 0;
  }
  int64_t block = CODE_BYTES / (4 * (d > 0 ? d : 1) * kernels.panel);
  if (block < 1) block = 1;
  for (int64_t panel = 0; panel < codebook.panel_count; panel += block) {
    const int64_t panels = codebook.panel_count - panel < block ? codebook.panel_count - panel : block;
    for (int64_t row = 0; row < n; row += tile) {
      VqSweep sweep = {};
      sweep.x = packed_ + row * d;
      sweep.panels = codebook.panels + panel * d * kernels.panel;
      sweep.bias = codebook.bias + panel * kernels.panel;
      sweep.d = d;
      sweep.panel_count = panels;
      sweep.first_code = int32_t(panel * kernels.panel);
      sweep.vectors = int(divide_up(n - row < tile ? n - row : tile, kernels.lanes));
      sweep.best = best_ + row;
      sweep.second = second_ + row;
      sweep.index = index_ + row;
      kernels.sweep(&sweep);
    }
  }
}

bool SearchScratch::search(const Search& search, int64_t first, int n, int64_t* index, uint8_t* nonfinite) {
  const VqKernels& kernels = *search.kernels;
  const Codebook& codebook = *search.codebook;
  const int64_t tile = tile_of(&kernels), d = codebook.d;
  // Lanes past n are swept too, as far as their vector reaches, but never looked at.
  for (int64_t i = n; i < divide_up(n, kernels.lanes) * kernels.lanes; ++i) best_[i] = second_[i] = 0.0f;
  for (int64_t row = 0; row < n; row += tile)
    kernels.pack_tile(search.x, first + row, int(n - row < tile ? n - row : tile), codebook.row_centre(),
                      packed_ + row * d, norm2_ + row);
  sweep_all(search, n);

  const Bound limit = bound(codebook);
  open_count_ = scan_count_ = 0;
  for (int i = 0; i < n; ++i) {
    bound_[i] = limit.of_row(norm2_[i]);
    index[i] = index_[i];
    nonfinite[i] = 0;
    // Written so that NaN and infinity count as doubt.
    const bool certain = search.precision == VQ_EXACT
                             ? double(best_[i]) - double(second_[i]) > 2.0 * double(bound_[i])
                             : bound_[i] < INFINITY;
    if (!certain) open_[open_count_++] = i;
  }
  if (!open_count_) return true;
  int kept = 0;
  for (int o = 0; o < open_count_; ++o) {
    const int i = open_[o];
    if (bound_[i] < INFINITY) {
      // Without a finite best there is no code to choose: index 0.
      if (best_[i] > -INFINITY) open_[kept++] = i;
      continue;
    }
    kernels.load_rows(search.x, first + i, 1, row_);
    nonfinite[i] = !row_is_finite(row_, d);
    if (nonfinite[i])
      index[i] = 0;
    else
      scan_[scan_count_++] = i;
  }
  open_count_ = kept;
  return settle(search, first, index);
}

bool SearchScratch::settle(const Search& search, int64_t first, int64_t* index) {
  const int64_t tile = tile_of(search.kernels);
  for (int o = 0; o < open_count_; o += int(tile)) {
    const int n = open_count_ - o < tile ? open_count_ - o : int(tile);
    settle_candidates(search, first, open_ + o, n, index);
  }
  return settle_by_scan(search, first, index);
}

void SearchScratch::settle_candidates(const Search& search, int64_t first, const int* rows, int n,
                                      int64_t* index) {
  const VqKernels& kernels = *search.kernels;
  const Codebook& codebook = *search.codebook;
  const int64_t tile = tile_of(&kernels), d = codebook.d;
  for (int64_t lane = 0; lane < tile; ++lane) {
    counts_[lane] = 0;
    threshold_[lane] = INFINITY;
  }
  for (int64_t i = 0; i < d * tile; ++i) compact_[i] = 0.0f;
  for (int lane = 0; lane < n; ++lane) {
    const int i = rows[lane];
    const float* from = packed_ + i / tile * tile * d + i % tile;
    for (int64_t c = 0; c < d; ++c) compact_[c * tile + lane] = from[c * tile];
    // Rounded down: the nearest code has a score of at least this.
    threshold_[lane] = nextafterf(float(double(best_[i]) - 2.0 * double(bound_[i])), -INFINITY);
  }
  VqSweep sweep = {};
  sweep.x = compact_;
  sweep.panels = codebook.panels;
  sweep.bias = codebook.bias;
  sweep.d = d;
  sweep.panel_count = codebook.panel_count;
  sweep.vectors = int(divide_up(n, kernels.lanes));
  sweep.threshold = threshold_;
  sweep.candidates = candidates_;
  sweep.counts = counts_;
  sweep.capacity = CANDIDATES;
  kernels.collect(&sweep);
  for (int lane = 0; lane < n; ++lane) {
    const int i = rows[lane];
    if (counts_[lane] > CANDIDATES) {
      scan_[scan_count_++] = i;
      continue;
    }
    kernels.load_rows(search.x, first + i, 1, row_);
    ExactScore best = {INFINITY, INFINITY};
    for (int c = 0; c < counts_[lane]; ++c) {  // in ascending order: a tie keeps the lowest
      const int32_t j = candidates_[int64_t(lane) * CANDIDATES + c];
      const ExactScore score = exact_score(row_, codebook.codes + j * d, d, codebook.l2);
      if (score < best) {
        best = score;
        index[i] = j;
      }
    }
  }
}

bool SearchScratch::settle_by_scan(const Search& search, int64_t first, int64_t* index) {
  if (!scan_count_) return true;
  Codebook& codebook = *search.codebook;
  if (!codebook.need_squares()) return false;
  const int64_t d = codebook.d;
  for (int s = 0; s < scan_count_; s += VQ_EXACT_LANES) {
    const int n = scan_count_ - s < VQ_EXACT_LANES ? scan_count_ - s : int(VQ_EXACT_LANES);
    for (int64_t i = 0; i < d * VQ_EXACT_LANES; ++i) exact_rows_[i] = 0.0;
    for (int lane = 0; lane < n; ++lane) {
      search.kernels->load_rows(search.x, first + scan_[s + lane], 1, row_);
      for (int64_t c = 0; c < d; ++c) exact_rows_[c * VQ_EXACT_LANES + lane] = row_[c];
    }
    int64_t found[VQ_EXACT_LANES];
    search.kernels->exact_scan(exact_rows_, codebook.codes, codebook.usable, codebook.squares_high,
                               codebook.squares_low, codebook.k, d, found);
    for (int lane = 0; lane < n; ++lane) index[scan_[s + lane]] = found[lane];
  }
  return true;
}
