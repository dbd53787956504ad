// The machine's roofs: products a second, by the loops of peak_body.h.
#include "cpu/narrow.h"
#include "cpu/support.h"

extern "C" int64_t vq_cpu_peak(int pass, int threads, int64_t rounds) {
  using namespace vq_cpu;
  int64_t (*loop)(int64_t) = kernels_in_use()->peak;
  const auto take = [&loop](const NarrowKernels* narrow) { loop = narrow ? narrow->peak : nullptr; };
  if (pass == VQ_INT8_FIRST) take(int8_kernels_in_use());
  if (pass == VQ_INT16_FIRST) take(int16_kernels_in_use());
  if (pass == VQ_BFLOAT16_FIRST) take(bfloat16_kernels_in_use());
  if (pass == VQ_BFLOAT16_FIRST && matrix_kernels_in_use()) loop = matrix_kernels_in_use()->peak;
  if (!loop) return 0;
  int64_t operations = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(+ : operations)
  operations += loop(rounds);
  return operations;
}
