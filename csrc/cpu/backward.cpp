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
  const int dtype = common_dtype({x, grad_quantized, grad_x});
  bool ok = true;
#pragma omp parallel num_threads(team) if (team > 1) reduction(&& : ok)
  {
    const DefaultRounding rounding;
    RowStream from, grad, to;
    ok = from.open(kernels, x, dtype) && to.open(kernels, grad_x, dtype) &&
         (!grad_quantized || grad.open(kernels, grad_quantized, dtype));
    Watch watch(&interruption);
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < chunks; ++t) {
      ok = ok && !watch.stop(kStreamRows * x->dim);
      if (!ok) continue;
      const int64_t first = t * kStreamRows;
      const int n = stream_rows(first, rows);
      const RowSpan of_quantized = grad_quantized ? grad.read(first, n) : RowSpan{nullptr, 0, dtype};
      kernels->backward_rows(of_quantized, loss_grad, from.read(first, n), e, codebook->count, indices + first, n,
                             x->dim, gradient, to.write(first, n));
      to.done(first, n);
    }
  }
  return interruption.status(ok);
}
