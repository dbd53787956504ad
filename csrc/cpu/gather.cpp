#include <string.h>

#include "cpu/codebook.h"
#include "cpu/rows.h"

namespace {

// Same dtype, channel last: rows are copied as bytes.
void copy_rows(const VqCodes* codes, const int64_t* indices, const VqRows* out, int64_t first, int n) {
  const size_t size = codes->dtype == VQ_F32 ? 4 : 2, bytes = size_t(codes->d) * size;
  const char* from = static_cast<const char*>(codes->data);
  for (int64_t r = first; r < first + n; ++r) {
    char* to = static_cast<char*>(out->data) +
               int64_t(size) * (r / out->m * out->stride_b + r % out->m * out->stride_m);
    memcpy(to, from + size_t(indices[r]) * bytes, bytes);
  }
}

}  // namespace

extern "C" int vq_cpu_gather_codes(const VqCodes* codes, const int64_t* indices, const VqRows* out,
                                   int threads) {
  const VqKernels* kernels = vq_kernels_in_use();
  const int64_t rows = row_count(out), tiles = divide_up(rows, ROWS_A_TILE);
  const int team = threads_for(threads, rows * out->d);
  if (out->dtype == codes->dtype && out->stride_d == 1) {
    parallel_for(team, tiles, [&](int64_t t) {
      copy_rows(codes, indices, out, t * ROWS_A_TILE, tile_rows(t * ROWS_A_TILE, rows));
    });
    return VQ_OK;
  }
  Buffer<float> storage;
  const float* e = codes_as_float(codes, kernels, threads, storage);
  bool ok = e != nullptr;
  if (!ok) return VQ_OUT_OF_MEMORY;
#pragma omp parallel num_threads(team) if (team > 1) reduction(&& : ok)
  {
    const DefaultRounding rounding;
    RowTile tile;
    ok = tile.open(kernels, out);
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = t * ROWS_A_TILE;
      const int n = tile_rows(first, rows);
      int64_t pitch;
      float* to = ok ? tile.write(first, n, &pitch) : nullptr;
      for (int i = 0; ok && i < n; ++i)
        memcpy(to + i * pitch, e + indices[first + i] * out->d, size_t(out->d) * 4);
      if (ok) tile.done(first, n);
    }
  }
  return ok ? VQ_OK : VQ_OUT_OF_MEMORY;
}
