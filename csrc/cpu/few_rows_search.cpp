#include "cpu/few_rows_search.h"

#include <math.h>
#include <string.h>

#include "cpu/exact.h"
#include "cpu/kernels.h"
#include "cpu/support.h"

namespace vq_cpu {
namespace {

constexpr int kTaskCodes = 256;

struct BestTwo {
  double best = INFINITY, second = INFINITY;
  int64_t index = 0;

  void offer(double score, int64_t j) {
    if (score < best) {
      second = best;
      best = score;
      index = j;
    } else if (score < second) {
      second = score;
    }
  }
  // The same for a later share of the codes.
  void merge(const BestTwo& later) {
    offer(later.best, later.index);
    if (later.second < second) second = later.second;
  }
};

struct FewRows {
  const Kernels* kernels;
  const float* codes;
  int64_t count, dim, pitch;
  bool l2;
  int n;
  Buffer<double> rows;  // [n][pitch]
};

// Scores of the codes of one task; returns the largest square norm of a code.
double score_task(const FewRows& few, int64_t task, BestTwo* best) {
  double largest = 0.0, scores[kFewRows];
  for (int r = 0; r < few.n; ++r) best[r] = BestTwo();
  for (int64_t j = task * kTaskCodes; j < few.count && j < (task + 1) * kTaskCodes; ++j) {
    const double norm2 =
        few.kernels->score_rows(few.rows, few.n, few.pitch, few.codes + j * few.dim, few.dim, few.l2, scores);
    if (!(norm2 < INFINITY)) continue;  // NaN or infinity: finite float32 squares do not overflow float64
    if (norm2 > largest) largest = norm2;
    for (int r = 0; r < few.n; ++r) best[r].offer(scores[r], j);
  }
  return largest;
}

// The lowest of the codes that are nearest exactly, among those within `limit` of the best.
int64_t choose_among_near(const FewRows& few, int r, const float* row, const BestTwo& lead, double limit,
                          Interruption* interruption) {
  const float* nearest = few.codes + lead.index * few.dim;
  ExactScore best = exact_score(row, nearest, few.dim, few.l2);
  int64_t index = lead.index;
  Watch watch(interruption);
  for (int64_t j = 0; j < few.count && !watch.stop(few.dim); ++j) {
    const float* code = few.codes + j * few.dim;
    double score;
    const double norm2 =
        few.kernels->score_rows(few.rows + r * few.pitch, 1, few.pitch, code, few.dim, few.l2, &score);
    if (!(norm2 < INFINITY) || score - lead.best > limit) continue;
    // Copies of the best so far need no score.
    const bool copy = memcmp(code, few.codes + index * few.dim, size_t(few.dim) * sizeof(float)) == 0;
    const ExactScore exact = copy ? best : exact_score(row, code, few.dim, few.l2);
    if (exact < best || (j < index && !(best < exact))) {
      best = exact;
      index = j;
    }
  }
  return index;
}

}  // namespace

bool search_few_rows(const VqRows* x, const float* codes, int64_t count, const VqSearchOptions& options,
                     int threads, Interruption* interruption, int64_t* index, uint8_t* nonfinite) {
  const Certificate certificate(options.bound_scale);
  const DefaultRounding rounding;
  FewRows few;
  few.kernels = kernels_in_use();
  few.codes = codes;
  few.count = count;
  few.dim = x->dim;
  few.pitch = divide_up(x->dim, kExactLanes) * kExactLanes;
  few.l2 = options.metric == VQ_L2;
  few.n = int(x->batches * x->rows);
  const int64_t tasks = divide_up(count, kTaskCodes);
  Buffer<float> row;
  Buffer<BestTwo> best;
  Buffer<double> norms;
  if (!few.rows.resize(few.n * few.pitch) || !row.resize(few.n * few.dim) || !best.resize(tasks * few.n) ||
      !norms.resize(tasks))
    return false;
  few.kernels->load_rows(x, 0, few.n, row);
  for (int r = 0; r < few.n; ++r) {
    double* to = few.rows + r * few.pitch;
    for (int64_t d = 0; d < few.pitch; ++d) to[d] = d < few.dim ? double(row[r * few.dim + d]) : 0.0;
  }
  const int team = threads_for(threads, count * few.dim * few.n);
  if (!parallel_for(team, tasks, interruption, kTaskCodes * few.dim * few.n,
                    [&](int64_t t) { norms[t] = score_task(few, t, best + t * few.n); }))
    return false;
  double largest = 0.0;
  for (int64_t t = 0; t < tasks; ++t) largest = norms[t] > largest ? norms[t] : largest;
  for (int r = 0; r < few.n; ++r) {
    double norm2 = 0.0;
    for (int64_t d = 0; d < few.dim; ++d) norm2 += few.rows[r * few.pitch + d] * few.rows[r * few.pitch + d];
    nonfinite[r] = !(norm2 < INFINITY);
    BestTwo lead = best[r];
    for (int64_t t = 1; t < tasks; ++t) lead.merge(best[t * few.n + r]);
    index[r] = nonfinite[r] || !(lead.best < INFINITY) ? 0 : lead.index;
    if (nonfinite[r] || !(lead.best < INFINITY)) continue;
    const double limit = 2.0 * certificate.float64(few.dim, sqrt(norm2), sqrt(largest));
    if (!(lead.second - lead.best > limit))
      index[r] = choose_among_near(few, r, row + r * few.dim, lead, limit, interruption);
  }
  return !interruption->happened();
}

}  // namespace vq_cpu
