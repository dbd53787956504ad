// Deterministic counts and sums: threads share out the codes, and each sums the rows of its codes in
// the order of the batch, in float64. No order depends on the number of threads, nothing is merged.
#include "cpu/statistics.h"

#include <math.h>
#include <string.h>

#include "cpu/rows.h"

namespace {

// The slot of each row: its index, or -1 if it is left out.
bool keep_finite(const VqKernels* kernels, const VqRows* x, const int64_t* indices, int threads,
                 int64_t* slots) {
  const int64_t rows = row_count(x), tiles = divide_up(rows, ROWS_A_TILE);
  const int team = threads_for(threads, rows * x->d);
  bool ok = true;
#pragma omp parallel num_threads(team) if (team > 1) reduction(&& : ok)
  {
    RowTile tile;
    ok = tile.open(kernels, x);
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = t * ROWS_A_TILE;
      const int n = tile_rows(first, rows);
      int64_t pitch;
      const float* p = ok ? tile.read(first, n, &pitch) : nullptr;
      for (int i = 0; ok && i < n; ++i) {
        float zero = 0.0f;
        for (int64_t d = 0; d < x->d; ++d) zero += p[i * pitch + d] * 0.0f;
        slots[first + i] = zero == 0.0f ? indices[first + i] : -1;
      }
    }
  }
  return ok;
}

}  // namespace

int count_and_sum(const VqKernels* kernels, const VqRows* x, const int64_t* slots, int64_t k, int threads,
                  int64_t* counts, float* sums) {
  const int64_t rows = row_count(x), d = x->d, tiles = divide_up(rows, ROWS_A_TILE);
  memset(counts, 0, size_t(k) * sizeof *counts);
  for (int64_t r = 0; r < rows; ++r)
    if (slots[r] >= 0) ++counts[slots[r]];
  Buffer<double> totals;
  if (!totals.resize(k * d)) return VQ_OUT_OF_MEMORY;
  const int team = threads_for(threads, rows * d);
  bool ok = true;
  // Shares of the codes that hold about as many rows each.
  Buffer<int64_t> starts;
  if (!starts.resize(team + 1)) return VQ_OUT_OF_MEMORY;
  int64_t seen = 0, code = 0, kept = 0;
  for (int64_t j = 0; j < k; ++j) kept += counts[j];
  for (int share = 0; share <= team; ++share) {
    while (code < k && (share == team || seen * team < kept * share)) seen += counts[code++];
    starts[share] = share == 0 ? 0 : code;
  }
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1) reduction(&& : ok)
  for (int share = 0; share < team; ++share) {
    const DefaultRounding rounding;
    const int64_t low = starts[share], high = starts[share + 1];
    RowTile tile;
    ok = tile.open(kernels, x);
    memset(totals + low * d, 0, size_t((high - low) * d) * sizeof(double));
    for (int64_t t = 0; ok && t < tiles; ++t) {
      const int64_t first = t * ROWS_A_TILE;
      const int n = tile_rows(first, rows);
      int64_t pitch;
      const float* p = tile.read(first, n, &pitch);
      kernels->add_rows(p, pitch, slots + first, n, d, low, high, totals);
    }
    for (int64_t i = low * d; i < high * d; ++i) sums[i] = float(totals[i]);
  }
  return ok ? VQ_OK : VQ_OUT_OF_MEMORY;
}

extern "C" int vq_cpu_code_statistics(const VqRows* x, const int64_t* indices, int64_t k, int skip_nonfinite,
                                      int threads, int64_t* counts, float* sums) {
  const VqKernels* kernels = vq_kernels_in_use();
  if (!skip_nonfinite) return count_and_sum(kernels, x, indices, k, threads, counts, sums);
  Buffer<int64_t> slots;
  if (!slots.resize(row_count(x)) || !keep_finite(kernels, x, indices, threads, slots))
    return VQ_OUT_OF_MEMORY;
  return count_and_sum(kernels, x, slots, k, threads, counts, sums);
}
