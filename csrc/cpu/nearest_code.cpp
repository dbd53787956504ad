#include "cpu/few_rows_search.h"
#include "cpu/search.h"

extern "C" int vq_cpu_nearest_code(const VqRows* x, const VqCodes* codebook, const VqSearchOptions* options,
                                   int threads, int64_t* indices) {
  using namespace vq_cpu;
  Interruption interruption;
  if (rows_are_few(x, options->precision)) {
    Buffer<float> storage;
    uint8_t nonfinite[kFewRows];
    const float* codes = codes_as_float(codebook, kernels_in_use(), threads, &interruption, storage);
    return interruption.status(codes && search_few_rows(x, codes, codebook->count, *options, threads,
                                                        &interruption, indices, nonfinite));
  }
  const DefaultRounding rounding;
  Search search(x, codebook->count, *options, &interruption);
  if (!search.prepare(codebook, options->metric, threads)) return interruption.status(false);
  const int team = threads_for(threads, search.rows() * codebook->count);
  bool ok = true;
#pragma omp parallel num_threads(team) if (team > 1) reduction(&& : ok)
  {
    const DefaultRounding team_rounding;
    BlockSearch block_search;
    Buffer<uint8_t> nonfinite;
    ok = block_search.open(&search) && nonfinite.resize(search.block_rows);
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < search.blocks(); ++b) {
      const int64_t first = b * search.block_rows, left = search.rows() - first;
      const int n = int(left < search.block_rows ? left : search.block_rows);
      ok = ok && block_search.run(RowBlock{first, n, indices + first, nonfinite});
    }
  }
  return interruption.status(ok);
}
