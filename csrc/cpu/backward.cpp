#include "cpu/codebook.h"
#include "cpu/rows.h"

extern "C" int vq_cpu_vector_quantize_backward(const VqRows* grad_quantized, const float* loss_grad,
                                               const VqRows* x, const VqCodes* codebook,
                                               const int64_t* indices, int gradient, int threads,
                                               const VqRows* grad_x) {
  using namespace vq_cpu;
  Interruption interruption;
  const Kernels* kernels = kernels_in_use();
  const int64_t rows = row_count(x), chunks = divide_up(rows, kStreamRows);
  const int team = threads_for(threads, rows * x->dim);
  Buffer<float> storage;
  const float* e = codes_as_float(codebook, kernels, threads, &interruption, storage);
  if (!e) return interruption.status(false);
  bool ok = true;
#pragma omp parallel num_threads(team) if (team > 1) reduction(&& : ok)
  {
    const DefaultRounding rounding;
    RowStream from, grad, to;
    ok = from.open(kernels, x) && to.open(kernels, grad_x) &&
         (!grad_quantized || grad.open(kernels, grad_quantized));
    Watch watch(&interruption);
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < chunks; ++t) {
      ok = ok && !watch.stop(kStreamRows * x->dim);
      if (!ok) continue;
      const int64_t first = t * kStreamRows;
      const int n = stream_rows(first, rows);
      int64_t ldx, ldo, ldg = 0;
      const float* rows_x = from.read(first, n, &ldx);
      const float* rows_g = grad_quantized ? grad.read(first, n, &ldg) : nullptr;
      float* rows_out = to.write(first, n, &ldo);
      kernels->backward_rows(rows_g, ldg, loss_grad, rows_x, ldx, e, codebook->count, indices + first, n,
                             x->dim, gradient, rows_out, ldo);
      to.done(first, n);
    }
  }
  return interruption.status(ok);
}
