#include "cpu/codebook.h"
#include "cpu/rows.h"

extern "C" int vq_cpu_vector_quantize_backward(const VqRows* grad, const VqRows* x, const VqCodes* codes,
                                               const int64_t* indices, float pull, int use_pull, int gradient,
                                               int threads, const VqRows* out) {
  const VqKernels* kernels = vq_kernels_in_use();
  const int64_t rows = row_count(x), tiles = divide_up(rows, ROWS_A_TILE);
  const int team = threads_for(threads, rows * x->d);
  Buffer<float> storage;
  const float* e = codes_as_float(codes, kernels, threads, storage);
  if (!e) return VQ_OUT_OF_MEMORY;
  bool ok = true;
#pragma omp parallel num_threads(team) if (team > 1) reduction(&& : ok)
  {
    const DefaultRounding rounding;
    RowTile from, through, to;
    ok = from.open(kernels, x) && to.open(kernels, out) && (!grad || through.open(kernels, grad));
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < tiles; ++t) {
      if (!ok) continue;
      const int64_t first = t * ROWS_A_TILE;
      const int n = tile_rows(first, rows);
      int64_t ldx, ldo, ldg = 0;
      const float* rows_x = from.read(first, n, &ldx);
      const float* rows_g = grad ? through.read(first, n, &ldg) : nullptr;
      float* rows_out = to.write(first, n, &ldo);
      kernels->backward_rows(rows_g, ldg, rows_x, ldx, e, indices + first, n, x->d, pull, use_pull, gradient,
                             rows_out, ldo);
      to.done(first, n);
    }
  }
  return ok ? VQ_OK : VQ_OUT_OF_MEMORY;
}
