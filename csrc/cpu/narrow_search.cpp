#include "cpu/narrow_search.h"

#include <math.h>
#include <string.h>

#include "cpu/dtype.h"
#include "cpu/search.h"

namespace vq_cpu {
namespace {

// Of so many codes that the first score leaves open all are scored together, rather than one after the other, of which
// each may rule out some of the rest.
constexpr int kScoredAtOnce = 8;

}  // namespace

bool NarrowSearch::open(Search* search, const NarrowCodebook& codebook, ExactSearch* exact, SweepSearch* sweep,
                        NarrowSearch* finer) {
  search_ = search;
  codebook_ = &codebook;
  exact_ = exact;
  sweep_ = sweep;
  finer_ = finer;
  const NarrowKernels& kernels = codebook.kernels();
  const NarrowCodes& codes = codebook.codes();
  const int64_t tile = kernels.lanes * kernels.vectors;
  factors_ = codebook.factors();
  if (!given_up_rows_.resize(search->block_rows) || !repeats_.resize(search->block_rows) ||
      !repeats_of_.resize(search->block_rows) || !last_row_.resize(codes.dim) || !rows_.resize(codes.steps * tile) ||
      !candidates_.resize(tile * kNarrowPitch) || !counts_.resize(tile) || !scale_.resize(tile) ||
      !norm_.resize(tile) || !lost_.resize(tile) || !bound_.resize(codes.groups * kernels.group) ||
      !group_bound_.resize(codes.groups) ||
      !most_.resize(kNarrowChunk / kernels.group * tile) || !slack_.resize(tile) || !least_.resize(tile) ||
      !upper_.resize(tile * kNarrowPitch) || !scratch_.resize(codes.dim * kernels.lanes) ||
      !row_.resize(codes.dim))
    return false;
  tile_ = {0,     rows_,  scale_, norm_,       lost_,  bound_, group_bound_,
           most_, slack_, least_, candidates_, upper_, counts_, {}};
  return true;
}

bool NarrowSearch::run(const RowBlock& block) {
  if (skip_) {
    --skip_;
    return run_other(block);
  }
  block_ = block;
  given_up_count_ = repeat_count_ = 0;
  last_position_ = -1;
  exact_->start(block);
  const int tile = codebook_->kernels().lanes * codebook_->kernels().vectors;
  int done = 0;
  while (done < block.n && !skip_) {
    if (search_->interruption->requested()) return false;
    const int given_up_before = given_up_count_;
    tile_.n = block.n - done < tile ? block.n - done : tile;
    search_tile(done);
    for (int lane = 0; lane < tile_.n; ++lane) resolve_row(done + lane, lane);
    done += tile_.n;
    if (given_up_count_ - given_up_before > tile_.n / (finer_ ? 8 : 2)) skip_ = kSkippedBlocks;
  }
  if (!resolve_given_up()) return false;
  return done == block.n ||
         run_other(RowBlock{block.first + done, block.n - done, block.index + done, block.nonfinite + done});
}

bool NarrowSearch::run_other(const RowBlock& block) {
  if (!finer_) return sweep_->run_ambiguous(block);
  if (!finer_->search_ &&
      !(search_->ensure_finer() && finer_->open(search_, search_->finer, exact_, sweep_, nullptr)))
    return false;
  return finer_->run(block);
}

// Row i goes to the float32 sweep, unless it is the same as the last that did, of zeros for example.
void NarrowSearch::give_up(int i) {
  const float* x = row(i);
  const int64_t dim = search_->x->dim;
  if ((last_position_ >= 0 || last_index_ >= 0) && rows_are_equal(x, last_row_, dim)) {
    if (last_position_ < 0) {
      block_.index[i] = last_index_;
      return;
    }
    repeats_of_[repeat_count_] = last_position_;
    repeats_[repeat_count_++] = i;
    return;
  }
  memcpy(last_row_, x, size_t(dim) * sizeof(float));
  last_position_ = i;
  given_up_rows_[given_up_count_++] = i;
}

bool NarrowSearch::resolve_given_up() {
  if (given_up_count_ && !sweep_->run_rows(block_, given_up_rows_, given_up_count_)) return false;
  if (!exact_->scan_queued_rows()) return false;
  for (int r = 0; r < repeat_count_; ++r) block_.index[repeats_[r]] = block_.index[repeats_of_[r]];
  if (last_position_ >= 0) last_index_ = block_.index[last_position_];
  return true;
}

void NarrowSearch::search_tile(int first) {
  const NarrowKernels& kernels = codebook_->kernels();
  const NarrowCodes& codes = codebook_->codes();
  kernels.pack_rows(search_->x, block_.first + first, codebook_->centring(), scratch_, &tile_);
  tile_.next = next_rows(first + tile_.n, kernels.lanes * kernels.vectors);
  const double centre = codebook_->centre_norm();
  for (int lane = 0; lane < tile_.n; ++lane)
    slack_[lane] = float(factors_.slack * (double(norm_[lane]) * double(norm_[lane]) + 4.0 * centre * centre));
  kernels.set_bounds(&codes, &factors_, &tile_);
  kernels.search(&codes, &factors_, &tile_);
}

// Rows from `first` of the block on, and of the next one, as far as they lie at one pitch.
NextRows NarrowSearch::next_rows(int first, int most) {
  const VqRows* x = search_->x;
  const int64_t size = element_size(x->dtype), n = block_.first + first, row = n % x->rows;
  int64_t count = x->stride_dim == 1 ? search_->rows() - n : 0;
  if (count > most) count = most;
  if (count > x->rows - row) count = x->rows - row;
  const int64_t start = n / x->rows * x->stride_batch + row * x->stride_row;
  return {static_cast<const char*>(x->data) + start * size, x->stride_row * size, x->dim * size, int(count)};
}

// Row i of the block as float32.
const float* NarrowSearch::row(int i) {
  const VqRows* x = search_->x;
  const int64_t n = block_.first + i;
  if (x->dtype == VQ_FLOAT32 && x->stride_dim == 1)
    return static_cast<const float*>(x->data) + n / x->rows * x->stride_batch + n % x->rows * x->stride_row;
  search_->kernels->load_rows(x, n, 1, row_);
  return row_;
}

void NarrowSearch::resolve_row(int i, int lane) {
  int64_t& index = block_.index[i];
  block_.nonfinite[i] = 0;
  index = 0;
  if (!(norm_[lane] < INFINITY)) return exact_->queue_unbounded(i);
  int n = counts_[lane];
  if (n > kNarrowCandidates) {
    give_up(i);
    return;
  }
  int32_t* candidates = candidates_ + lane * kNarrowPitch;
  float* upper = upper_ + lane * kNarrowPitch;
  // A bound that is infinite or NaN lists nothing; so does a codebook without a code to choose.
  if (n == 0) return exact_->queue_unbounded(i);
  index = candidates[0];
  if (n == 1) return;
  // The likely best first: its own bound, and then its score, rule out most others.
  int likely = 0;
  for (int c = 1; c < n; ++c)
    if (upper[c] > upper[likely]) likely = c;
  const int32_t code = candidates[likely];
  const float top = upper[likely];
  const NarrowCodes& codes = codebook_->codes();
  const float low =
      top - twice_bound(factors_, norm_[lane], bound_[code], -codes.minus_half[code]) - slack_[lane];
  const float least_upper = low - fabsf(low) * 0x1p-22f;
  int left = 1;
  candidates[likely] = candidates[0];
  upper[likely] = upper[0];
  for (int c = 1; c < n; ++c) {
    if (!(upper[c] >= least_upper)) continue;
    candidates[left] = candidates[c];
    upper[left++] = upper[c];
  }
  candidates[0] = code;
  upper[0] = top;
  index = code;
  if (left < 2) return;
  const Codebook& codebook = search_->codebook;
  const Centring centring = codebook_->centring();
  const float* x = row(i);
  const double norm = double(norm_[lane]), slack = double(slack_[lane]);
  double least = -INFINITY, reach[kNarrowCandidates], scores[kNarrowCandidates];
  int scored = 0;
  bool at_once = false;
  for (int c = 0; c < left; ++c) {
    if (c == 1 && left > kScoredAtOnce) {
      int open = 1;
      for (int other = 1; other < left; ++other) {
        if (!(double(upper[other]) >= least - slack)) continue;
        candidates[open] = candidates[other];
        upper[open++] = upper[other];
      }
      left = open;
      at_once = left > kScoredAtOnce;
      if (at_once)
        search_->kernels->score_listed(x, codebook.codes, candidates + 1, left - 1, centring, codebook.dim, codebook.l2,
                                       scores + 1);
    }
    if (c >= left || !(double(upper[c]) >= least - slack)) continue;
    const int64_t j = candidates[c];
    const double score =
        at_once ? scores[c]
                : codebook_->kernels().score(x, codebook.codes + j * codebook.dim, centring, codebook.dim, codebook.l2);
    const double e = double(codes.kept[j]) + double(codes.lost[j]);
    const double error = factors_.score * e * (norm + 0.5 * e) + factors_.contract * e * e + 0.5 * slack;
    candidates[scored] = int32_t(j);
    reach[scored++] = score + error;
    if (score - error > least) least = score - error;
  }
  int tied = 0;
  for (int c = 0; c < scored; ++c) {
    if (!(reach[c] >= least)) continue;
    // In ascending order.
    const int32_t j = candidates[c];
    int at = tied++;
    for (; at && candidates[at - 1] > j; --at) candidates[at] = candidates[at - 1];
    candidates[at] = j;
  }
  index = candidates[0];
  if (tied > 1) exact_->choose_exactly(i, candidates, tied);
}

}  // namespace vq_cpu
