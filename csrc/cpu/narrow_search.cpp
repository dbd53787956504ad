#include "cpu/narrow_search.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <initializer_list>

#include "cpu/dtype.h"
#include "cpu/search.h"

namespace vq_cpu {
namespace {

// Rows for which no finer search is prepared, and which do not send the blocks to come to it.
constexpr int kFewGivenUp = 6;
// What an open code costs and a group that is looked into, what both do a dimension, and how much a dimension of a code
// does in the search that takes over: on an EPYC, but their ratios are much the same elsewhere.
constexpr double kCodeNs = 7.0, kGroupNs = 17.0, kOpenNsADim = 0.125, kFinerNs = 0.01, kSweepNs = 0.014;

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
  for (Buffer<int>* of_block : {&given_up_rows_, &repeats_, &repeats_of_})
    if (!of_block->resize(search->block_rows)) return false;
  for (Buffer<float>* of_tile : {&scale_, &norm_, &lost_, &slack_, &least_, &best_, &second_, &others_})
    if (!of_tile->resize(tile)) return false;
  for (Buffer<int32_t>* of_tile : {&counts_, &lead_, &code_, &is_doubtful_, &doubtful_})
    if (!of_tile->resize(tile)) return false;
  if (!rows_.resize(codes.steps * tile) || !most_.resize(kNarrowChunk / kernels.group * tile) ||
      !run_best_.resize(kNarrowRuns * tile) || !run_rest_.resize(kNarrowRuns * tile) ||
      !groups_.resize(kNarrowCandidates * tile) || !upper_.resize(kNarrowCandidates * tile) ||
      !leading_.resize(kernels.group * tile + kernels.lanes) || !scores_.resize(tile) ||
      !scratch_.resize(codes.dim * kernels.lanes) || !row_.resize(codes.dim) || !last_row_.resize(codes.dim))
    return false;
  tile_ = {0,       codebook.reach(), rows_,  scale_,  norm_,   lost_, most_, run_best_, run_rest_, slack_,       least_,
           groups_, upper_,           counts_, best_, second_, lead_, leading_, code_, others_,   is_doubtful_, {}};
  return true;
}

bool NarrowSearch::run(const RowBlock& block) {
  exact_->start(block);
  return search(block, nullptr, block.n);
}

bool NarrowSearch::run_rows(const RowBlock& block, const int* rows, int count) { return search(block, rows, count); }

bool NarrowSearch::search(const RowBlock& block, const int* rows, int count) {
  if (skip_) {
    --skip_;
    return search_by_other(block, rows, count);
  }
  block_ = block;
  given_up_count_ = repeat_count_ = 0;
  last_position_ = -1;
  const int tile = codebook_->kernels().lanes * codebook_->kernels().vectors;
  int done = 0;
  while (done < count && !skip_) {
    if (search_->interruption->requested()) return false;
    const int given_up_before = given_up_count_;
    opened_codes_ = opened_groups_ = 0;
    tile_.n = count - done < tile ? count - done : tile;
    if (!rows)
      pack_tile(done);
    else if (!pack_listed(rows + done))
      return false;
    search_tile();
    resolve_tile(done, rows);
    done += tile_.n;
    if (others_are_faster(given_up_count_ - given_up_before)) skip_ = kSkippedBlocks;
  }
  if (!resolve_given_up()) return false;
  if (done == count) return true;
  if (rows) return search_by_other(block, rows + done, count - done);
  const RowBlock rest = {block.first + done, count - done, block.index + done, block.nonfinite + done};
  return search_by_other(rest, nullptr, rest.n);
}

// After a tile of which so many rows were given up. Of a whole tile, so that one row of a short list does not speak for
// the blocks to come.
bool NarrowSearch::others_are_faster(int given_up) const {
  const int tile = codebook_->kernels().lanes * codebook_->kernels().vectors;
  if (given_up > (finer_ ? std::max(tile / 8, kFewGivenUp) : tile / 2)) return true;
  const double dim = double(search_->codebook.dim), codes = double(search_->codebook.count);
  const double other = codes * dim * tile * (finer_ ? kFinerNs : kSweepNs);
  return double(opened_codes_) * (kCodeNs + kOpenNsADim * dim) + double(opened_groups_) * (kGroupNs + kOpenNsADim * dim) >
         other;
}

bool NarrowSearch::search_by_other(const RowBlock& block, const int* rows, int count) {
  if (!finer_) return rows ? sweep_->run_rows(block, rows, count) : sweep_->run_ambiguous(block);
  if (!finer_->search_ &&
      !(search_->ensure_finer() && finer_->open(search_, search_->finer, exact_, sweep_, nullptr)))
    return false;
  return rows ? finer_->run_rows(block, rows, count) : finer_->run(block);
}

// Row i goes to the finer search or the float32 sweep, unless it is the same as the last that did, of zeros for example.
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
  given_up_total_ += given_up_count_;
  const bool to_finer = finer_ && !search_->first.finer->rounds && (finer_->search_ || given_up_total_ > kFewGivenUp);
  if (given_up_count_ && !(to_finer ? search_by_other(block_, given_up_rows_, given_up_count_)
                                    : sweep_->run_rows(block_, given_up_rows_, given_up_count_)))
    return false;
  if (!exact_->scan_queued_rows()) return false;
  for (int r = 0; r < repeat_count_; ++r) block_.index[repeats_[r]] = block_.index[repeats_of_[r]];
  if (last_position_ >= 0) last_index_ = block_.index[last_position_];
  return true;
}

void NarrowSearch::pack_tile(int first) {
  const NarrowKernels& kernels = codebook_->kernels();
  kernels.pack_rows(search_->x, block_.first + first, codebook_->row_centring(), scratch_, &tile_);
  tile_.next = next_rows(first + tile_.n, kernels.lanes * kernels.vectors);
}

bool NarrowSearch::pack_listed(const int* rows) {
  const NarrowKernels& kernels = codebook_->kernels();
  const int64_t dim = search_->x->dim;
  if (!listed_.get() && !listed_.resize(kernels.lanes * kernels.vectors * dim)) return false;
  for (int lane = 0; lane < tile_.n; ++lane)
    search_->kernels->load_rows(search_->x, block_.first + rows[lane], 1, listed_ + lane * dim);
  const VqRows view = {listed_, 1, tile_.n, dim, tile_.n * dim, dim, 1, VQ_FLOAT32};
  kernels.pack_rows(&view, 0, codebook_->row_centring(), scratch_, &tile_);
  tile_.next = {};
  return true;
}

void NarrowSearch::search_tile() {
  const NarrowKernels& kernels = codebook_->kernels();
  const NarrowCodes& codes = codebook_->codes();
  const double centre = codebook_->centre_norm();
  for (int lane = 0; lane < tile_.n; ++lane)
    slack_[lane] = float(factors_.slack * (double(norm_[lane]) * double(norm_[lane]) + 4.0 * centre * centre));
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

// In loops of their own, so that the scores of one row do not wait for what those of another decide.
void NarrowSearch::resolve_tile(int first, const int* rows) {
  const auto position = [first, rows](int lane) { return rows ? rows[first + lane] : first + lane; };
  const int32_t *code = tile_.code, *order = codebook_->codes().order;
  int doubtful = 0;
  for (int lane = 0; lane < tile_.n; ++lane) {
    const int i = position(lane);
    block_.nonfinite[i] = 0;
    block_.index[i] = 0;
    // A bound that is infinite or NaN finds nothing; so does a codebook without a code to choose.
    if (!(norm_[lane] < INFINITY) || !(best_[lane] >= kNarrowLeast)) {
      exact_->queue_unbounded(i);
    } else if (counts_[lane] > kNarrowCandidates) {
      give_up(i);
    } else {
      block_.index[i] = order[code[lane]];
      doubtful_[doubtful] = lane;
      doubtful += is_doubtful_[lane];
    }
  }
  // The score of the likely best code rules out all others for most.
  int open = 0;
  for (int d = 0; d < doubtful; ++d) {
    const int lane = doubtful_[d];
    scores_[open] = quick_score(row(position(lane)), lane, code[lane]);
    doubtful_[open] = lane;
    open += double(others_[lane]) >= scores_[open].low() - double(slack_[lane]);
  }
  for (int d = 0; d < open; ++d) resolve_row(position(doubtful_[d]), doubtful_[d], scores_[d]);
}

NarrowSearch::Score NarrowSearch::with_error(double value, double factor, int lane, int64_t place) const {
  const double e = double(codebook_->codes().length[place]);
  return {value, factor * e * (double(norm_[lane]) + 0.5 * e) + factors_.contract * e * e + 0.5 * double(slack_[lane])};
}

NarrowSearch::Score NarrowSearch::quick_score(const float* x, int lane, int64_t place) const {
  const float value = codebook_->kernels().quick_score(x, code_at(place), codebook_->centring(), search_->codebook.dim,
                                                       search_->codebook.l2);
  Score score = with_error(double(value), factors_.quick_score, lane, place);
  score.error += double(factors_.offset);
  return score;
}

NarrowSearch::Score NarrowSearch::score(const float* x, int lane, int64_t place) const {
  const double value = codebook_->kernels().score(x, code_at(place), codebook_->centring(), search_->codebook.dim,
                                                  search_->codebook.l2);
  return with_error(value, factors_.score, lane, place);
}

const float* NarrowSearch::code_at(int64_t place) const {
  return search_->codebook.codes + codebook_->codes().order[place] * search_->codebook.dim;
}

// Keeps the candidates that can be the nearest, and their scores; returns how many they are.
int NarrowSearch::keep_open(Score* scores, int32_t* candidates, int n) {
  double least = -INFINITY;
  for (int c = 0; c < n; ++c) least = std::max(least, scores[c].low());
  int left = 0;
  for (int c = 0; c < n; ++c) {
    if (!(scores[c].high() >= least)) continue;
    candidates[left] = candidates[c];
    scores[left++] = scores[c];
  }
  return left;
}

// `likely`: the score of the likely best code.
void NarrowSearch::resolve_row(int i, int lane, Score likely) {
  const double slack = double(slack_[lane]);
  double least = likely.low();
  int32_t candidates[kNarrowPitch + 1];
  float upper[kNarrowPitch + 1];
  Score scores[ExactSearch::kListed];
  const int32_t* order = codebook_->codes().order;
  const int n = codebook_->kernels().open_codes(&codebook_->codes(), &tile_, lane, float(least - slack),
                                                candidates + 1, upper + 1);
  if (n > kNarrowCandidates) return give_up(i);
  opened_codes_ += n;
  opened_groups_ += n > 0;
  for (int c = 2; c <= n; ++c)  // a power of two of codes is a group
    opened_groups_ += (candidates[c] ^ candidates[c - 1]) >= codebook_->kernels().group;
  const float* x = row(i);
  candidates[0] = tile_.code[lane];
  if (n >= ExactSearch::kListed) {
    for (int c = 0; c <= n; ++c) candidates[c] = order[candidates[c]];
    const double norm = 1.01 * double(norm_[lane]) + (search_->codebook.l2 ? codebook_->centre_norm() : 0.0);
    return exact_->choose_listed(i, x, norm / double(codebook_->centring().scale), candidates, n + 1);
  }
  scores[0] = likely;
  int scored = 1;
  for (int c = 1; c <= n; ++c) {
    if (!(double(upper[c]) >= least - slack)) continue;
    candidates[scored] = candidates[c];
    scores[scored] = quick_score(x, lane, candidates[c]);
    least = std::max(least, scores[scored++].low());
  }
  int left = keep_open(scores, candidates, scored);
  if (left > 1) {
    for (int c = 0; c < left; ++c) scores[c] = score(x, lane, candidates[c]);
    left = keep_open(scores, candidates, left);
  }
  if (left > 1) {
    for (int c = 0; c < left; ++c) candidates[c] = order[candidates[c]];
    std::sort(candidates, candidates + left);
    return exact_->choose_exactly(i, candidates, left);
  }
  block_.index[i] = order[candidates[0]];
}

}  // namespace vq_cpu
