#include "cpu/direct_search.h"
#include "cpu/rows.h"
#include "cpu/search.h"

extern "C" int vq_cpu_nearest_code(const VqRows* x, const VqCodes* codebook, VqPreparedCodebook* prepared,
                                   const VqSearchOptions* options, int threads, int64_t* indices) {
  using namespace vq_cpu;
  Interruption interruption;
  if (!prepared && rows_are_few(x, codebook->count, options->precision)) {
    Buffer<float> storage;
    Buffer<uint8_t> nonfinite;
    const float* codes = codes_as_float(codebook, kernels_in_use(), threads, &interruption, storage);
    if (!codes || !nonfinite.resize(row_count(x))) return interruption.status(false);
    const DirectResult result = search_directly(x, codes, codebook->count, *options, threads, &interruption,
                                                indices, nonfinite);
    if (result != DirectResult::given_up) return interruption.status(result == DirectResult::done);
  }
  const DefaultRounding rounding;
  VqPreparedCodebook own;
  if (!prepared && !own.prepare(codebook, *options, threads, &interruption)) return interruption.status(false);
  Search search(x, prepared ? *prepared : own, *options, &interruption);
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
