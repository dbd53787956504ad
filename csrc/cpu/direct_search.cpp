#include "cpu/direct_search.h"

#include <math.h>
#include <string.h>

#include "cpu/exact.h"
#include "cpu/kernels.h"
#include "cpu/support.h"

namespace vq_cpu {
namespace {

constexpr int kBlockRows = 192;    // whose best codes of every task are kept
constexpr int kFloat64Rows = 4;    // at once
constexpr int64_t kTaskCodes = kDirectCodes;

// Whether lanes that are dimensions are the faster way: a sum over lanes costs about five vectors, rows along the
// lanes take all of a vector however few they are.
bool lanes_are_dims(const Kernels& kernels, int rows, int64_t dim) {
  return rows <= kernels.dot_rows && rows * (divide_up(dim, kernels.lanes) + 5) < dim + 2;
}

// The rows of one block against all codes.
class DirectBlock {
 public:
  DirectBlock(const float* codes, int64_t count, int64_t dim, const VqSearchOptions& options, int threads,
              Interruption* interruption)
      : kernels_(*kernels_in_use()),
        certificate_(options.bound_scale),
        interruption_(interruption),
        codes_(codes),
        count_(count),
        dim_(dim),
        pitch_(divide_up(dim, kernels_.lanes) * kernels_.lanes),
        tasks_(divide_up(count, kTaskCodes)),
        l2_(options.metric == VQ_L2),
        threads_(threads) {}
  DirectResult run(const VqRows* x, int64_t first, int n, int64_t* index, uint8_t* nonfinite);

 private:
  bool pack_rows(const VqRows* x, int64_t first);
  bool sweep();
  bool search_in_float64(const int* rows, int n, int64_t* index);
  int64_t choose_among_near(int row, const double* wide, const BestTwo<double>& lead, double limit);
  int64_t codes_of(int64_t task) const {
    const int64_t left = count_ - task * kTaskCodes;
    return left < kTaskCodes ? left : kTaskCodes;
  }
  int team(int64_t work) const { return threads_for(threads_, work); }

  const Kernels& kernels_;
  const Certificate certificate_;
  Interruption* interruption_;
  const float* codes_;
  const int64_t count_, dim_, pitch_, tasks_;
  const bool l2_;
  const int threads_;
  int n_ = 0;
  Buffer<float> rows_;              // [n][pitch], zeros beyond dim
  Buffer<float> packed_;            // [tiles][dim][tile], where rows are many enough to be lanes
  Buffer<float> norm2_;             // [n]
  Buffer<float> largest_;           // [tasks]: |e|^2
  Buffer<BestTwo<float>> found_;    // [tasks][n]
};

bool DirectBlock::pack_rows(const VqRows* x, int64_t first) {
  const int tile = kernels_.lanes * kernels_.vectors;
  Buffer<float> row;
  if (!rows_.resize(n_ * pitch_) || !row.resize(n_ * dim_) || !norm2_.resize(divide_up(n_, tile) * tile)) return false;
  kernels_.load_rows(x, first, n_, row);
  for (int r = 0; r < n_; ++r) {
    memcpy(rows_ + r * pitch_, row + r * dim_, size_t(dim_) * sizeof(float));
    for (int64_t d = dim_; d < pitch_; ++d) rows_[r * pitch_ + d] = 0.0f;
  }
  if (lanes_are_dims(kernels_, n_, dim_)) {
    for (int r = 0; r < n_; ++r) {
      double square = 0.0;
      for (int64_t d = 0; d < dim_; ++d) square += double(row[r * dim_ + d]) * double(row[r * dim_ + d]);
      norm2_[r] = float(square);
    }
    return true;
  }
  if (!packed_.resize(divide_up(n_, tile) * tile * dim_)) return false;
  for (int r = 0; r < n_; r += tile)
    kernels_.pack_tile(x, first + r, n_ - r < tile ? n_ - r : tile, Centring{1.0f, nullptr}, packed_ + r * dim_,
                       norm2_ + r);
  return true;
}

bool DirectBlock::sweep() {
  const int tile = kernels_.lanes * kernels_.vectors;
  if (!largest_.resize(tasks_) || !found_.resize(tasks_ * n_)) return false;
  return parallel_for(team(count_ * dim_ * n_), tasks_, interruption_, kTaskCodes * dim_ * n_, [&](int64_t t) {
    float bias[kDirectCodes];
    DirectSweep sweep = {};
    sweep.codes = codes_ + t * kTaskCodes * dim_;
    sweep.bias = bias;
    sweep.dim = dim_;
    sweep.count = int(codes_of(t));
    sweep.first_code = int32_t(t * kTaskCodes);
    sweep.pitch = pitch_;
    largest_[t] = kernels_.half_norms(sweep.codes, sweep.count, dim_, l2_, bias);
    if (lanes_are_dims(kernels_, n_, dim_)) {
      sweep.x = rows_;
      sweep.rows = n_;
      sweep.found = found_ + t * n_;
      return kernels_.sweep_dots(&sweep);
    }
    for (int r = 0; r < n_; r += tile) {
      sweep.x = packed_ + r * dim_;
      sweep.rows = n_ - r < tile ? n_ - r : tile;
      sweep.found = found_ + t * n_ + r;
      kernels_.sweep_rows(&sweep);
    }
  });
}

DirectResult DirectBlock::run(const VqRows* x, int64_t first, int n, int64_t* index, uint8_t* nonfinite) {
  n_ = n;
  if (!pack_rows(x, first) || !sweep()) return DirectResult::failed;
  float largest = 0.0f;
  for (int64_t t = 0; t < tasks_; ++t)
    largest = largest_[t] > largest ? largest_[t] : largest;
  const Bound bound = certificate_.direct(dim_, largest);
  int open[kBlockRows], open_count = 0;
  for (int r = 0; r < n; ++r) {
    BestTwo<float> lead = found_[r];
    for (int64_t t = 1; t < tasks_; ++t) lead.merge(found_[t * n + r]);
    index[r] = lead.index;
    nonfinite[r] = 0;
    const double limit = 2.0 * double(bound.of_row(norm2_[r]));
    // Written so that NaN and infinity count as doubt.
    if (!(double(lead.best) - double(lead.second) > limit)) open[open_count++] = r;
  }
  if (open_count > kFloat64Rows && open_count > n / 4) return DirectResult::given_up;
  for (int i = 0; i < open_count; i += kFloat64Rows) {
    const int some = open_count - i < kFloat64Rows ? open_count - i : kFloat64Rows;
    if (!search_in_float64(open + i, some, index)) return DirectResult::failed;
    for (int r = i; r < i + some; ++r) {
      const float* row = rows_ + open[r] * pitch_;
      for (int64_t d = 0; d < dim_; ++d) nonfinite[open[r]] |= !(fabsf(row[d]) < INFINITY);
      if (nonfinite[open[r]]) index[open[r]] = 0;
    }
  }
  return DirectResult::done;
}

// n <= kFloat64Rows rows of the block, with all codes once more.
bool DirectBlock::search_in_float64(const int* rows, int n, int64_t* index) {
  const int64_t pitch = divide_up(dim_, kExactLanes) * kExactLanes;
  Buffer<double> wide, largest;  // [n][pitch], [tasks]
  Buffer<BestTwo<double>> found;  // [tasks][n]
  if (!wide.resize(n * pitch) || !largest.resize(tasks_) || !found.resize(tasks_ * n)) return false;
  for (int r = 0; r < n; ++r)
    for (int64_t d = 0; d < pitch; ++d) wide[r * pitch + d] = d < dim_ ? double(rows_[rows[r] * pitch_ + d]) : 0.0;
  const bool swept =
      parallel_for(team(count_ * dim_ * n), tasks_, interruption_, kTaskCodes * dim_ * n, [&](int64_t t) {
        BestTwo<double>* best = found + t * n;
        double scores[kFloat64Rows];
        largest[t] = 0.0;
        for (int r = 0; r < n; ++r) best[r] = BestTwo<double>();
        for (int64_t j = t * kTaskCodes; j < t * kTaskCodes + codes_of(t); ++j) {
          const double norm2 = kernels_.score_rows(wide, n, pitch, codes_ + j * dim_, dim_, l2_, scores);
          if (!(norm2 < INFINITY)) continue;  // NaN or infinity: finite float32 squares do not overflow float64
          if (norm2 > largest[t]) largest[t] = norm2;
          for (int r = 0; r < n; ++r) best[r].offer(-scores[r], j);
        }
      });
  if (!swept) return false;
  for (int64_t t = 1; t < tasks_; ++t) largest[0] = largest[t] > largest[0] ? largest[t] : largest[0];
  for (int r = 0; r < n; ++r) {
    double norm2 = 0.0;
    for (int64_t d = 0; d < dim_; ++d) norm2 += wide[r * pitch + d] * wide[r * pitch + d];
    BestTwo<double> lead = found[r];
    for (int64_t t = 1; t < tasks_; ++t) lead.merge(found[t * n + r]);
    const bool any = norm2 < INFINITY && lead.best > -INFINITY;
    index[rows[r]] = any ? lead.index : 0;
    const double limit = 2.0 * certificate_.float64(dim_, sqrt(norm2), sqrt(largest[0]));
    if (any && !(lead.best - lead.second > limit))
      index[rows[r]] = choose_among_near(rows[r], wide + r * pitch, lead, limit);
  }
  return !interruption_->happened();
}

// The lowest of the codes that are nearest exactly, among those within `limit` of the best.
int64_t DirectBlock::choose_among_near(int r, const double* wide, const BestTwo<double>& lead, double limit) {
  const float* row = rows_ + r * pitch_;
  ExactScore best = exact_score(row, codes_ + lead.index * dim_, dim_, l2_);
  int64_t index = lead.index;
  Watch watch(interruption_);
  for (int64_t j = 0; j < count_ && !watch.stop(dim_); ++j) {
    const float* code = codes_ + j * dim_;
    double score;
    const double norm2 =
        kernels_.score_rows(wide, 1, divide_up(dim_, kExactLanes) * kExactLanes, code, dim_, l2_, &score);
    if (!(norm2 < INFINITY) || score + lead.best > limit) continue;
    // Copies of the best so far need no score.
    const bool copy = memcmp(code, codes_ + index * dim_, size_t(dim_) * sizeof(float)) == 0;
    const ExactScore exact = copy ? best : exact_score(row, code, dim_, l2_);
    if (exact < best || (j < index && !(best < exact))) {
      best = exact;
      index = j;
    }
  }
  return index;
}

}  // namespace

DirectResult search_directly(const VqRows* x, const float* codes, int64_t count, const VqSearchOptions& options,
                             int threads, Interruption* interruption, int64_t* index, uint8_t* nonfinite) {
  const DefaultRounding rounding;
  DirectBlock block(codes, count, x->dim, options, threads, interruption);
  const int64_t rows = x->batches * x->rows;
  for (int64_t first = 0; first < rows; first += kBlockRows) {
    const int n = int(rows - first < kBlockRows ? rows - first : kBlockRows);
    const DirectResult result = block.run(x, first, n, index + first, nonfinite + first);
    if (result != DirectResult::done) return result;
  }
  return interruption->happened() ? DirectResult::failed : DirectResult::done;
}

}  // namespace vq_cpu
