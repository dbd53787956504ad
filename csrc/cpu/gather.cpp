#include <string.h>

#include "cpu/codebook.h"
#include "cpu/rows.h"

namespace vq_cpu {
namespace {

// Same dtype, channel last: rows are copied as bytes.
void copy_rows(const VqCodes* codes, const int64_t* indices, const VqRows* out, int64_t first, int n) {
  const int64_t size = element_size(codes->dtype);
  const size_t bytes = size_t(codes->dim * size);
  const char* from = static_cast<const char*>(codes->data);
  for (int64_t r = first; r < first + n; ++r) {
    char* to = static_cast<char*>(out->data) +
               size * (r / out->rows * out->stride_batch + r % out->rows * out->stride_row);
    memcpy(to, from + size_t(indices[r]) * bytes, bytes);
  }
}

}  // namespace
}  // namespace vq_cpu

extern "C" int vq_cpu_gather_codes(const VqCodes* codebook, const int64_t* indices,
                                   const VqRows* quantized, int threads) {
  using namespace vq_cpu;
  Interruption interruption;
  const Kernels* kernels = kernels_in_use();
  const int64_t rows = row_count(quantized), chunks = divide_up(rows, kStreamRows);
  const int team = threads_for(threads, rows * quantized->dim);
  const int64_t chunk_work = kStreamRows * quantized->dim;
  if (quantized->dtype == codebook->dtype && quantized->stride_dim == 1) {
    const bool done = parallel_for(team, chunks, &interruption, chunk_work, [&](int64_t t) {
      copy_rows(codebook, indices, quantized, t * kStreamRows, stream_rows(t * kStreamRows, rows));
    });
    return interruption.status(done);
  }
  Buffer<float> storage;
  const float* e = codes_as_float(codebook, kernels, threads, &interruption, storage);
  bool ok = e != nullptr;
  if (!ok) return interruption.status(false);
#pragma omp parallel num_threads(team) if (team > 1) reduction(&& : ok)
  {
    const DefaultRounding rounding;
    RowStream stream;
    ok = stream.open(kernels, quantized, VQ_FLOAT32);
    Watch watch(&interruption);
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < chunks; ++t) {
      const int64_t first = t * kStreamRows;
      const int n = stream_rows(first, rows);
      ok = ok && !watch.stop(chunk_work);
      if (!ok) continue;
      const RowSpan span = stream.write(first, n);
      for (int i = 0; i < n; ++i)
        memcpy(static_cast<float*>(span.data) + i * span.pitch, e + indices[first + i] * quantized->dim,
               size_t(quantized->dim) * 4);
      stream.done(first, n);
    }
  }
  return interruption.status(ok);
}
