// Search, gather, squared error and slots for the statistics, block by block while the rows are cached.
#include <math.h>

#include "cpu/rows.h"
#include "cpu/search.h"
#include "cpu/statistics.h"

namespace {

struct Step {
  const VqKernels* kernels;
  const VqRows *x, *out;
  const float* codes;
  const uint8_t* mask;
  int64_t* indices;
  int64_t* slots;  // null without statistics
};

// Writes the quantized rows first .. first + n - 1, whose codes are in indices, and returns their
// squared error. Leaves -1 in indices for masked rows.
double quantize_tile(const Step& step, RowTile& from, RowTile& to, int64_t first, int n,
                     const uint8_t* nonfinite) {
  int64_t ldx, ldo;
  const int64_t d = step.x->d;
  const float* x = from.read(first, n, &ldx);
  float* out = to.write(first, n, &ldo);
  int64_t* index = step.indices + first;
  double error = 0.0;
  for (int i = 0; i < n;) {
    // Runs of ordinary rows together, masked and non-finite ones alone.
    const bool masked = step.mask && !step.mask[first + i];
    int run = i;
    while (run < n && !(step.mask && !step.mask[first + run]) && !nonfinite[run]) ++run;
    if (run > i) {
      error += step.kernels->quantize_rows(x + i * ldx, ldx, step.codes, index + i, run - i, d,
                                           out + i * ldo, ldo);
      if (step.slots)
        for (int r = i; r < run; ++r) step.slots[first + r] = index[r];
      i = run;
      continue;
    }
    for (int64_t c = 0; c < d; ++c) out[i * ldo + c] = masked ? 0.0f : NAN;
    if (step.slots) step.slots[first + i] = -1;
    if (masked)
      index[i] = -1;
    else
      error = NAN;
    ++i;
  }
  to.done(first, n);
  return error;
}

bool quantize_few(const Step& step, int64_t k, int metric, int threads, double* error) {
  const int rows = int(row_count(step.x));
  uint8_t nonfinite[SEARCH_FEW_ROWS];
  RowTile from, to;
  if (!search_few(step.x, step.codes, k, metric == VQ_L2, threads, step.indices, nonfinite) ||
      !from.open(step.kernels, step.x) || !to.open(step.kernels, step.out))
    return false;
  *error = rows ? quantize_tile(step, from, to, 0, rows, nonfinite) : 0.0;
  return true;
}

bool quantize_blocks(const Step& step, Search& search, int threads, double* error) {
  const int64_t rows = search.rows();
  Buffer<double> errors;  // one a block: summed in order, whatever thread had it
  if (!errors.resize(search.blocks())) return false;
  const int team = threads_for(threads, rows * search.codebook.k);
  bool ok = true;
#pragma omp parallel num_threads(team) if (team > 1) reduction(&& : ok)
  {
    const DefaultRounding rounding;
    BlockSearch block_search;
    RowTile from, to;
    Buffer<uint8_t> nonfinite;
    ok = block_search.open(&search) && nonfinite.resize(search.block_rows) &&
         from.open(step.kernels, step.x) && to.open(step.kernels, step.out);
#pragma omp for schedule(dynamic)
    for (int64_t block = 0; block < search.blocks(); ++block) {
      const int64_t start = block * search.block_rows;
      const int64_t end = start + search.block_rows < rows ? start + search.block_rows : rows;
      ok = ok && block_search.run(start, int(end - start), step.indices + start, nonfinite);
      double sum = 0.0;
      for (int64_t first = start; ok && first < end; first += ROWS_A_TILE)
        sum += quantize_tile(step, from, to, first, tile_rows(first, end), nonfinite + (first - start));
      errors[block] = sum;
    }
  }
  *error = 0.0;
  for (int64_t block = 0; block < search.blocks(); ++block) *error += errors[block];
  return ok;
}

}  // namespace

extern "C" int vq_cpu_vector_quantize(const VqRows* x, const VqCodes* codes, const uint8_t* mask, int metric,
                                      int precision, int threads, const VqRows* out, int64_t* indices,
                                      float* mse, int64_t* valid_rows, int64_t* counts, float* sums) {
  const VqKernels* kernels = vq_kernels_in_use();
  const DefaultRounding rounding;
  const int64_t rows = row_count(x);
  Buffer<int64_t> slots;
  if (counts && !slots.resize(rows)) return VQ_OUT_OF_MEMORY;
  Step step = {kernels, x, out, nullptr, mask, indices, counts ? slots.get() : nullptr};
  double error = 0.0;
  if (rows_are_few(x, precision)) {
    Buffer<float> storage;
    step.codes = codes_as_float(codes, kernels, threads, storage);
    if (!step.codes || !quantize_few(step, codes->k, metric, threads, &error))
      return VQ_OUT_OF_MEMORY;
  } else {
    Search search(x, precision);
    if (!search.prepare(codes, metric, threads)) return VQ_OUT_OF_MEMORY;
    step.codes = search.codebook.codes;
    if (!quantize_blocks(step, search, threads, &error)) return VQ_OUT_OF_MEMORY;
  }
  int64_t valid = rows;
  if (mask) {
    valid = 0;
    for (int64_t r = 0; r < rows; ++r) valid += mask[r] != 0;
  }
  *valid_rows = valid;
  *mse = float(error / double(valid * x->d > 0 ? valid * x->d : 1));
  return counts ? count_and_sum(kernels, x, slots, codes->k, threads, counts, sums) : int(VQ_OK);
}
