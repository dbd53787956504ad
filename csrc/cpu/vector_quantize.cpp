// Search, gather, squared error and slots for the statistics, block by block while the rows are cached.
#include <math.h>
#include <string.h>

#include "cpu/direct_search.h"
#include "cpu/dtype.h"
#include "cpu/rows.h"
#include "cpu/search.h"
#include "cpu/statistics.h"

namespace vq_cpu {
namespace {

struct Step {
  const Kernels* kernels;
  const VqRows *x, *quantized;
  const float* codes;
  const void* rounded;  // the codes in the dtype in which rows are written, or null
  const uint8_t* mask;
  int64_t* indices;
  int64_t* slots;  // null without statistics
  Interruption* interruption;
};

RowSpan rows_from(RowSpan span, int first) {
  const int64_t offset = first * span.pitch * element_size(span.dtype);
  return {static_cast<char*>(span.data) + offset, span.pitch, span.dtype};
}

void fill_row(RowSpan row, int64_t dim, float value) {
  with_type(row.dtype, [&](auto* type) {
    auto* out = static_cast<decltype(type)>(row.data);
    for (int64_t d = 0; d < dim; ++d) from_float(value, out + d);
  });
}

// Writes the quantized rows first .. first + n - 1, whose codes are in indices, and returns their
// squared error. Leaves -1 in indices for masked rows.
double quantize_chunk(const Step& step, RowStream& from, RowStream& to, int64_t first, int n,
                     const uint8_t* nonfinite) {
  const int64_t dim = step.x->dim;
  const RowSpan x = from.read(first, n), out = to.write(first, n);
  int64_t* index = step.indices + first;
  double error = 0.0;
  for (int i = 0; i < n;) {
    // Runs of ordinary rows together, masked and non-finite ones alone.
    const bool masked = step.mask && !step.mask[first + i];
    int run = i;
    while (run < n && !(step.mask && !step.mask[first + run]) && !nonfinite[run]) ++run;
    if (run > i) {
      error += step.kernels->quantize_rows(rows_from(x, i), step.codes, step.rounded, index + i, run - i, dim,
                                           rows_from(out, i));
      if (step.slots)
        for (int r = i; r < run; ++r) step.slots[first + r] = index[r];
      i = run;
      continue;
    }
    fill_row(rows_from(out, i), dim, masked ? 0.0f : NAN);
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

// The codes with 0 for entries that are not finite. Only the first code can be taken and hold any, where
// there is no finite one. Null if there is no memory.
const float* finite_codes(const float* codes, int64_t count, int64_t dim, Buffer<float>& storage) {
  bool finite = true;
  for (int64_t d = 0; d < dim; ++d) finite = finite && fabsf(codes[d]) < INFINITY;
  if (finite) return codes;
  if (!storage.resize(count * dim)) return nullptr;
  for (int64_t i = 0; i < count * dim; ++i) storage[i] = fabsf(codes[i]) < INFINITY ? codes[i] : 0.0f;
  return storage;
}

// Codes as 16 bits where rows are written so and are enough to pay for it. False if there is no
// memory or it was interrupted.
bool round_codes(Step* step, int64_t count, int threads, Buffer<uint16_t>& storage) {
  constexpr int64_t kRowsOfCode = 8, kTaskCodes = 64;
  const int64_t dim = step->x->dim;
  const int dtype = common_dtype({step->x, step->quantized});
  if (dtype == VQ_FLOAT32 || row_count(step->x) < kRowsOfCode * count) return true;
  if (!storage.resize(count * dim)) return false;
  const VqRows out = {storage, 1, count, dim, 0, dim, 1, dtype};
  step->rounded = storage;
  return parallel_for(threads_for(threads, count * dim), divide_up(count, kTaskCodes), step->interruption,
                      kTaskCodes * dim, [&](int64_t t) {
                        const int64_t first = t * kTaskCodes;
                        const int n = int(count - first < kTaskCodes ? count - first : kTaskCodes);
                        step->kernels->store_rows(&out, first, n, step->codes + first * dim);
                      });
}

DirectResult quantize_directly(const Step& step, int64_t count, const VqSearchOptions& options, int threads,
                               double* error) {
  const int64_t rows = row_count(step.x);
  const int dtype = common_dtype({step.x, step.quantized});
  Buffer<uint8_t> nonfinite;
  RowStream from, to;
  if (!nonfinite.resize(rows) || !from.open(step.kernels, step.x, dtype) ||
      !to.open(step.kernels, step.quantized, dtype))
    return DirectResult::failed;
  const DirectResult result = search_directly(step.x, step.codes, count, options, threads, step.interruption,
                                              step.indices, nonfinite);
  *error = 0.0;
  for (int64_t first = 0; result == DirectResult::done && first < rows; first += kStreamRows)
    *error += quantize_chunk(step, from, to, first, stream_rows(first, rows), nonfinite + first);
  return result;
}

bool quantize_blocks(const Step& step, Search& search, int threads, double* error) {
  const int64_t rows = search.rows();
  Buffer<double> errors;  // one a block: summed in order, whatever thread had it
  if (!errors.resize(search.blocks())) return false;
  const int team = threads_for(threads, rows * search.codebook.count);
  const int dtype = common_dtype({step.x, step.quantized});
  bool ok = true;
#pragma omp parallel num_threads(team) if (team > 1) reduction(&& : ok)
  {
    const DefaultRounding rounding;
    BlockSearch block_search;
    RowStream from, to;
    Buffer<uint8_t> nonfinite;
    ok = block_search.open(&search) && nonfinite.resize(search.block_rows) &&
         from.open(step.kernels, step.x, dtype) && to.open(step.kernels, step.quantized, dtype);
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < search.blocks(); ++b) {
      const int64_t start = b * search.block_rows;
      const int64_t end = start + search.block_rows < rows ? start + search.block_rows : rows;
      ok = ok && block_search.run(RowBlock{start, int(end - start), step.indices + start, nonfinite});
      double sum = 0.0;
      for (int64_t first = start; ok && first < end; first += kStreamRows)
        sum += quantize_chunk(step, from, to, first, stream_rows(first, end), nonfinite + (first - start));
      errors[b] = sum;
    }
  }
  *error = 0.0;
  for (int64_t b = 0; b < search.blocks(); ++b) *error += errors[b];
  return ok;
}

}  // namespace
}  // namespace vq_cpu

extern "C" int vq_cpu_vector_quantize(const VqRows* x, const VqCodes* codebook, VqPreparedCodebook* prepared,
                                      const uint8_t* mask, const VqQuantizeOptions* options, int threads,
                                      const VqQuantizeResult* result) {
  using namespace vq_cpu;
  Interruption interruption;
  const Kernels* kernels = kernels_in_use();
  const DefaultRounding rounding;
  const int64_t rows = row_count(x);
  if (result->codebook_copy) {
    const int64_t numbers = codebook->count * codebook->dim;
    memcpy(result->codebook_copy, codebook->data, size_t(numbers * element_size(codebook->dtype)));
  }
  const bool statistics = result->counts != nullptr;
  Buffer<int64_t> slots;
  if (statistics && !slots.resize(rows)) return VQ_OUT_OF_MEMORY;
  Step step = {kernels, x, &result->quantized, nullptr, nullptr, mask, result->indices,
               statistics ? slots.get() : nullptr, &interruption};
  double error = 0.0;
  Buffer<float> storage;
  Buffer<uint16_t> rounded;
  DirectResult direct = DirectResult::given_up;
  if (!prepared && rows_are_few(x, codebook->count, options->search.precision)) {
    step.codes = codes_as_float(codebook, kernels, threads, &interruption, storage);
    if (!step.codes) return interruption.status(false);
    direct = quantize_directly(step, codebook->count, options->search, threads, &error);
  }
  if (direct == DirectResult::failed) return interruption.status(false);
  if (direct == DirectResult::given_up) {
    VqPreparedCodebook own;
    if (!prepared && !own.prepare(codebook, options->search, threads, &interruption))
      return interruption.status(false);
    Search search(x, prepared ? *prepared : own, options->search, &interruption);
    step.codes = search.codebook.codes;
    if (!round_codes(&step, codebook->count, threads, rounded)) return interruption.status(false);
    if (!quantize_blocks(step, search, threads, &error)) return interruption.status(false);
  }
  int64_t valid = rows;
  if (mask) {
    valid = 0;
    for (int64_t r = 0; r < rows; ++r) valid += mask[r] != 0;
  }
  // Rounded before it is weighted: the mean's bits do not depend on the weight.
  const float mean = float(error / double(valid * x->dim > 0 ? valid * x->dim : 1));
  *result->loss = options->loss_weight * mean;
  *result->valid_rows = valid;
  if (!statistics) return VQ_OK;
  const float* codes = nullptr;
  Buffer<float> converted, cleaned;
  if (options->sum_differences) {
    codes = codes_as_float(codebook, kernels, threads, &interruption, converted);
    if (codes) codes = finite_codes(codes, codebook->count, codebook->dim, cleaned);
    if (!codes) return interruption.status(false);
  }
  return interruption.status(count_and_sum(kernels, x, slots, codes, codebook->count, threads, &interruption,
                                           result->counts, result->sums));
}
