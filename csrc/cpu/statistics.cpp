// Deterministic counts and sums: threads share out the codes, and each sums the rows of its codes in
// the order of the batch, in float64. No order depends on the number of threads, nothing is merged.
#include "cpu/statistics.h"

#include <math.h>
#include <string.h>

#include "cpu/rows.h"

namespace vq_cpu {
namespace {

// The slot of each row: its index, or -1 if it is left out.
bool keep_finite(const Kernels* kernels, const VqRows* x, const int64_t* indices, int threads,
                 Interruption* interruption, int64_t* slots) {
  const int64_t rows = row_count(x), chunks = divide_up(rows, kStreamRows);
  const int team = threads_for(threads, rows * x->dim);
  bool ok = true;
#pragma omp parallel num_threads(team) if (team > 1) reduction(&& : ok)
  {
    RowStream stream;
    ok = stream.open(kernels, x, VQ_FLOAT32);
    Watch watch(interruption);
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < chunks; ++t) {
      const int64_t first = t * kStreamRows;
      const int n = stream_rows(first, rows);
      ok = ok && !watch.stop(kStreamRows * x->dim);
      if (!ok) continue;
      const RowSpan span = stream.read(first, n);
      for (int i = 0; i < n; ++i) {
        const float* p = static_cast<const float*>(span.data) + i * span.pitch;
        float zero = 0.0f;
        for (int64_t d = 0; d < x->dim; ++d) zero += p[d] * 0.0f;
        slots[first + i] = zero == 0.0f ? indices[first + i] : -1;
      }
    }
  }
  return ok;
}

}  // namespace

bool count_and_sum(const Kernels* kernels, const VqRows* x, const int64_t* slots, const float* codes,
                   int64_t count, int threads, Interruption* interruption, int64_t* counts, float* sums) {
  const int64_t rows = row_count(x), dim = x->dim, chunks = divide_up(rows, kStreamRows);
  memset(counts, 0, size_t(count) * sizeof *counts);
  for (int64_t r = 0; r < rows; ++r)
    if (slots[r] >= 0 && slots[r] < count) ++counts[slots[r]];
  Buffer<double> totals;
  if (!totals.resize(count * dim)) return false;
  const int team = threads_for(threads, rows * dim);
  bool ok = true;
  // Shares of the codes that hold about as many rows each.
  Buffer<int64_t> starts;
  if (!starts.resize(team + 1)) return false;
  int64_t seen = 0, code = 0, kept = 0;
  for (int64_t j = 0; j < count; ++j) kept += counts[j];
  for (int share = 0; share <= team; ++share) {
    while (code < count && (share == team || seen * team < kept * share)) seen += counts[code++];
    starts[share] = share == 0 ? 0 : code;
  }
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1) reduction(&& : ok)
  for (int share = 0; share < team; ++share) {
    const DefaultRounding rounding;
    const int64_t low = starts[share], high = starts[share + 1];
    RowStream stream;
    ok = stream.open(kernels, x, common_dtype({x}));
    Watch watch(interruption);
    memset(totals + low * dim, 0, size_t((high - low) * dim) * sizeof(double));
    for (int64_t t = 0; ok && t < chunks; ++t) {
      const int64_t first = t * kStreamRows;
      const int n = stream_rows(first, rows);
      kernels->add_rows(stream.read(first, n), codes, slots + first, n, dim, low, high, totals);
      ok = !watch.stop(kStreamRows * dim);
    }
    for (int64_t i = low * dim; i < high * dim; ++i) sums[i] = float(totals[i]);
  }
  return ok;
}

}  // namespace vq_cpu

extern "C" int vq_cpu_code_statistics(const VqRows* x, const int64_t* indices, int64_t codes,
                                      int skip_nonfinite, int threads, int64_t* counts, float* sums) {
  using namespace vq_cpu;
  const Kernels* kernels = kernels_in_use();
  Interruption interruption;
  Buffer<int64_t> slots;
  if (skip_nonfinite && (!slots.resize(row_count(x)) ||
                         !keep_finite(kernels, x, indices, threads, &interruption, slots)))
    return interruption.status(false);
  return interruption.status(count_and_sum(kernels, x, skip_nonfinite ? slots : indices, nullptr, codes,
                                           threads, &interruption, counts, sums));
}
