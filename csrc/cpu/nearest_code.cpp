#include "cpu/search.h"

extern "C" int vq_cpu_nearest_code(const VqRows* x, const VqCodes* codes, int metric, int precision,
                                   int threads, int64_t* indices) {
  if (rows_are_few(x, precision)) {
    Buffer<float> storage;
    uint8_t nonfinite[SEARCH_FEW_ROWS];
    const float* e = codes_as_float(codes, vq_kernels_in_use(), threads, storage);
    const bool done = e && search_few(x, e, codes->k, metric == VQ_L2, threads, indices, nonfinite);
    return done ? VQ_OK : VQ_OUT_OF_MEMORY;
  }
  const DefaultRounding rounding;
  Search search(x, precision);
  if (!search.prepare(codes, metric, threads)) return VQ_OUT_OF_MEMORY;
  const int team = threads_for(threads, search.rows() * codes->k);
  bool ok = true;
#pragma omp parallel num_threads(team) if (team > 1) reduction(&& : ok)
  {
    const DefaultRounding team_rounding;
    BlockSearch block_search;
    Buffer<uint8_t> nonfinite;
    ok = block_search.open(&search) && nonfinite.resize(search.block_rows);
#pragma omp for schedule(dynamic)
    for (int64_t block = 0; block < search.blocks(); ++block) {
      const int64_t first = block * search.block_rows, left = search.rows() - first;
      const int n = int(left < search.block_rows ? left : search.block_rows);
      ok = ok && block_search.run(first, n, indices + first, nonfinite);
    }
  }
  return ok ? VQ_OK : VQ_OUT_OF_MEMORY;
}
