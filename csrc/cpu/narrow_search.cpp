#include "cpu/narrow_search.h"

#include <math.h>

#include "cpu/search.h"

namespace vq_cpu {

bool NarrowSearch::open(Search* search, ExactSearch* exact, SweepSearch* sweep) {
  search_ = search;
  exact_ = exact;
  sweep_ = sweep;
  const NarrowKernels& kernels = *search->first.narrow;
  const NarrowCodes& codes = search->narrow.codes();
  const int64_t tile = kernels.lanes * kernels.vectors;
  factors_ = search->narrow_factors;
  if (!given_up_rows_.resize(search->block_rows) || !rows_.resize(codes.steps * tile) ||
      !candidates_.resize(tile * kNarrowCandidates) || !counts_.resize(tile) || !scale_.resize(tile) ||
      !norm_.resize(tile) || !lost_.resize(tile) || !bound_.resize(codes.groups * kernels.group) ||
      !most_.resize(kNarrowChunk / kernels.group * tile) || !slack_.resize(tile) || !least_.resize(tile) ||
      !upper_.resize(tile * kNarrowCandidates) || !scratch_.resize(codes.dim * kernels.lanes) ||
      !row_.resize(codes.dim))
    return false;
  tile_ = {0,      rows_,  scale_, norm_,       lost_,  bound_, most_,
           slack_, least_, candidates_, upper_, counts_};
  return true;
}

bool NarrowSearch::run(const RowBlock& block) {
  if (skip_ || !search_->narrow.bounded()) {
    skip_ -= skip_ > 0;
    return sweep_->run(block);
  }
  block_ = block;
  given_up_count_ = 0;
  exact_->start(block);
  const int tile = search_->first.narrow->lanes * search_->first.narrow->vectors;
  int done = 0;
  while (done < block.n && !skip_) {
    if (search_->interruption->requested()) return false;
    const int given_up_before = given_up_count_;
    tile_.n = block.n - done < tile ? block.n - done : tile;
    search_tile(done);
    for (int lane = 0; lane < tile_.n; ++lane) resolve_row(done + lane, lane);
    done += tile_.n;
    if (given_up_count_ - given_up_before > tile_.n / 2) skip_ = kSkippedBlocks;
  }
  if (given_up_count_ && !sweep_->run_rows(block_, given_up_rows_, given_up_count_)) return false;
  if (!exact_->scan_queued_rows()) return false;
  return done == block.n ||
         sweep_->run(RowBlock{block.first + done, block.n - done, block.index + done, block.nonfinite + done});
}

void NarrowSearch::search_tile(int first) {
  const NarrowKernels& kernels = *search_->first.narrow;
  const NarrowCodes& codes = search_->narrow.codes();
  kernels.pack_rows(search_->x, block_.first + first, search_->narrow.centring(), scratch_, &tile_);
  for (int lane = 0; lane < tile_.n; ++lane)
    slack_[lane] = search_->certificate.narrow_slack(codes.dim, norm_[lane], search_->narrow.centre_norm());
  kernels.set_bounds(&codes, &factors_, &tile_);
  kernels.search(&codes, &factors_, &tile_);
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
    given_up_rows_[given_up_count_++] = i;
    return;
  }
  int32_t* candidates = candidates_ + lane * kNarrowCandidates;
  float* upper = upper_ + lane * kNarrowCandidates;
  if (n) index = candidates[0];
  if (n < 2) return;
  const NarrowCodes& codes = search_->narrow.codes();
  const Codebook& codebook = search_->codebook;
  const Centring centring = search_->narrow.centring();
  const float* x = row(i);
  // The likely best first: its score rules out most others.
  int likely = 0;
  for (int c = 1; c < n; ++c)
    if (upper[c] > upper[likely]) likely = c;
  const int32_t code = candidates[likely];
  const float bound = upper[likely];
  candidates[likely] = candidates[0];
  upper[likely] = upper[0];
  candidates[0] = code;
  upper[0] = bound;
  double least = -INFINITY, reach[kNarrowCandidates];
  int scored = 0;
  for (int c = 0; c < n; ++c) {
    if (!(double(upper[c]) >= least - double(slack_[lane]))) continue;
    const int64_t j = candidates[c];
    const double score =
        search_->first.narrow->score(x, codebook.codes + j * codebook.dim, centring, codebook.dim, codebook.l2);
    const double error = search_->certificate.narrow_candidate(
        codes.dim, norm_[lane], double(codes.kept[j]) + double(codes.lost[j])) + 0.5 * double(slack_[lane]);
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
