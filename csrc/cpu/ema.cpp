#include "cpu/kernels.h"
#include "cpu/support.h"

namespace {

// a + weight (b - a), written as torch.lerp writes it.
float lerp(float a, float b, float weight) {
  return weight < 0.5f ? a + weight * (b - a) : b - (b - a) * (1.0f - weight);
}

}  // namespace

extern "C" int vq_cpu_ema_update(float* codebook, float* cluster_size, float* embed_avg, const void* counts,
                                 int counts_dtype, const float* sums, int64_t k, int64_t d, double weight,
                                 double eps, int normalize, int threads) {
  const int64_t* whole = counts_dtype == 0 ? static_cast<const int64_t*>(counts) : nullptr;
  const float* real = counts_dtype == 0 ? nullptr : static_cast<const float*>(counts);
  // The averages of a code that no row takes any more decay into subnormal numbers, on which the
  // processor is ten times slower; they go to zero instead.
  const FlushSubnormals flush;
  double rows = 0.0;
  for (int64_t j = 0; j < k; ++j) rows += whole ? double(whole[j]) : double(real[j]);
  if (!(rows > 0.0)) return VQ_OK;
  double total = 0.0;
  for (int64_t j = 0; j < k; ++j) {
    cluster_size[j] = lerp(cluster_size[j], whole ? float(whole[j]) : real[j], float(weight));
    total += double(cluster_size[j]);
  }
  const VqKernels* kernels = vq_kernels_in_use();
  const float sum = float(total), spread = float(total + double(k) * eps), small = float(eps);
  constexpr int CODES_A_TASK = 64;
  parallel_for(threads_for(threads, k * d), divide_up(k, CODES_A_TASK), [&](int64_t t) {
    const FlushSubnormals team_flush;
    for (int64_t j = t * CODES_A_TASK; j < k && j < (t + 1) * CODES_A_TASK; ++j) {
      const float smoothed = (cluster_size[j] + small) / spread * sum;
      kernels->ema_row(codebook + j * d, embed_avg + j * d, sums + j * d, d, float(weight), smoothed, normalize);
    }
  });
  return VQ_OK;
}
