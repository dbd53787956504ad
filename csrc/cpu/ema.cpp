#include "cpu/kernels.h"
#include "cpu/support.h"

namespace vq_cpu {
namespace {

// a + weight (b - a), written as torch.lerp writes it.
float lerp(float a, float b, float weight) {
  return weight < 0.5f ? a + weight * (b - a) : b - (b - a) * (1.0f - weight);
}

}  // namespace
}  // namespace vq_cpu

extern "C" int vq_cpu_ema_update(float* codebook, float* cluster_size, float* embed_avg, const void* counts,
                                 int counts_are_float, const float* sums, int64_t codes, int64_t dim,
                                 double one_minus_decay, double eps, int normalize, int threads) {
  using namespace vq_cpu;
  const int64_t* whole = counts_are_float ? nullptr : static_cast<const int64_t*>(counts);
  const float* real = counts_are_float ? static_cast<const float*>(counts) : nullptr;
  // The averages of a code that no row takes any more decay into subnormal numbers, on which the
  // processor is ten times slower; they go to zero instead.
  const FlushSubnormals flush;
  double rows = 0.0;
  for (int64_t j = 0; j < codes; ++j) rows += whole ? double(whole[j]) : double(real[j]);
  if (!(rows > 0.0)) return VQ_OK;
  const auto new_size = [&](int64_t j) {
    return lerp(cluster_size[j], whole ? float(whole[j]) : real[j], float(one_minus_decay));
  };
  double total = 0.0;
  for (int64_t j = 0; j < codes; ++j) total += double(new_size(j));
  const Kernels* kernels = kernels_in_use();
  const float sum = float(total), spread = float(total + double(codes) * eps), small = float(eps);
  constexpr int kTaskCodes = 64;
  // In place, so not to be interrupted.
  parallel_for(threads_for(threads, codes * dim), divide_up(codes, kTaskCodes), nullptr, 0, [&](int64_t t) {
    const FlushSubnormals team_flush;
    for (int64_t j = t * kTaskCodes; j < codes && j < (t + 1) * kTaskCodes; ++j) {
      const float size = new_size(j), smoothed = (size + small) / spread * sum;
      if (kernels->ema_row(codebook + j * dim, embed_avg + j * dim, sums + j * dim, dim,
                           float(one_minus_decay), smoothed, normalize))
        cluster_size[j] = size;
    }
  });
  return VQ_OK;
}
