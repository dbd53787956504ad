// A handful of rows against all codes: float64 straight away, threads share out the codes.
//
// Packing a codebook costs as much as comparing it with several rows, so for so few rows it is read once
// as it is. What float64 leaves open is scored exactly.
#include <math.h>
#include <string.h>

#include "cpu/exact.h"
#include "cpu/search.h"

namespace {

constexpr int CODES_A_TASK = 256;

struct Lead {
  double best = INFINITY, second = INFINITY;
  int64_t index = 0;

  void take(double score, int64_t j) {
    if (score < best) {
      second = best;
      best = score;
      index = j;
    } else if (score < second) {
      second = score;
    }
  }
  // The same for a later share of the codes.
  void take(const Lead& later) {
    take(later.best, later.index);
    if (later.second < second) second = later.second;
  }
};

struct Few {
  const VqKernels* kernels;
  const float* codes;
  int64_t k, d, pitch;
  bool l2;
  int n;
  Buffer<double> rows;  // [n][pitch]
};

// Scores of the codes of one task; returns the largest square norm of a code.
double score_task(const Few& few, int64_t task, Lead* leads) {
  double largest = 0.0, scores[SEARCH_FEW_ROWS];
  for (int r = 0; r < few.n; ++r) leads[r] = Lead();
  for (int64_t j = task * CODES_A_TASK; j < few.k && j < (task + 1) * CODES_A_TASK; ++j) {
    const double norm2 =
        few.kernels->score_rows(few.rows, few.n, few.pitch, few.codes + j * few.d, few.d, few.l2, scores);
    if (!(norm2 < INFINITY)) continue;  // NaN or infinity: finite float32 squares do not overflow float64
    if (norm2 > largest) largest = norm2;
    for (int r = 0; r < few.n; ++r) leads[r].take(scores[r], j);
  }
  return largest;
}

// The lowest of the codes that are nearest exactly, among those within `limit` of the best.
int64_t settle(const Few& few, int r, const float* row, const Lead& lead, double limit) {
  const float* nearest = few.codes + lead.index * few.d;
  ExactScore best = exact_score(row, nearest, few.d, few.l2);
  int64_t index = lead.index;
  for (int64_t j = 0; j < few.k; ++j) {
    const float* code = few.codes + j * few.d;
    double score;
    const double norm2 =
        few.kernels->score_rows(few.rows + r * few.pitch, 1, few.pitch, code, few.d, few.l2, &score);
    if (!(norm2 < INFINITY) || score - lead.best > limit) continue;
    // Copies of the best so far need no score.
    const bool copy = memcmp(code, few.codes + index * few.d, size_t(few.d) * sizeof(float)) == 0;
    const ExactScore exact = copy ? best : exact_score(row, code, few.d, few.l2);
    if (exact < best || (j < index && !(best < exact))) {
      best = exact;
      index = j;
    }
  }
  return index;
}

}  // namespace

bool search_few(const VqRows* x, const float* codes, int64_t k, bool l2, int threads, int64_t* index,
                uint8_t* nonfinite) {
  const DefaultRounding rounding;
  Few few;
  few.kernels = vq_kernels_in_use();
  few.codes = codes;
  few.k = k;
  few.d = x->d;
  few.pitch = divide_up(x->d, VQ_EXACT_LANES) * VQ_EXACT_LANES;
  few.l2 = l2;
  few.n = int(x->b * x->m);
  const int64_t tasks = divide_up(k, CODES_A_TASK);
  Buffer<float> row;
  Buffer<Lead> leads;
  Buffer<double> norms;
  if (!few.rows.resize(few.n * few.pitch) || !row.resize(few.n * few.d) || !leads.resize(tasks * few.n) ||
      !norms.resize(tasks))
    return false;
  few.kernels->load_rows(x, 0, few.n, row);
  for (int r = 0; r < few.n; ++r) {
    double* to = few.rows + r * few.pitch;
    for (int64_t d = 0; d < few.pitch; ++d) to[d] = d < few.d ? double(row[r * few.d + d]) : 0.0;
  }
  parallel_for(threads_for(threads, k * few.d * few.n), tasks,
               [&](int64_t t) { norms[t] = score_task(few, t, leads + t * few.n); });
  double largest = 0.0;
  for (int64_t t = 0; t < tasks; ++t) largest = norms[t] > largest ? norms[t] : largest;
  for (int r = 0; r < few.n; ++r) {
    double norm2 = 0.0;
    for (int64_t d = 0; d < few.d; ++d) norm2 += few.rows[r * few.pitch + d] * few.rows[r * few.pitch + d];
    nonfinite[r] = !(norm2 < INFINITY);
    Lead lead = leads[r];
    for (int64_t t = 1; t < tasks; ++t) lead.take(leads[t * few.n + r]);
    index[r] = nonfinite[r] || !(lead.best < INFINITY) ? 0 : lead.index;
    if (nonfinite[r] || !(lead.best < INFINITY)) continue;
    const double limit = 2.0 * float64_bound(few.d, sqrt(norm2), sqrt(largest));
    if (!(lead.second - lead.best > limit)) index[r] = settle(few, r, row + r * few.d, lead, limit);
  }
  return true;
}
