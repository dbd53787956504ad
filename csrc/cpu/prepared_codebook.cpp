#include "cpu/prepared_codebook.h"

#include <new>

#include "cpu/certificate.h"

bool VqPreparedCodebook::prepare(const VqCodes* codes, const VqSearchOptions& options, int threads,
                                 vq_cpu::Interruption* interruption) {
  const int64_t dim = codes->dim;
  kernels = vq_cpu::kernels_in_use();
  first = vq_cpu::choose_first_pass(dim, codes->count);
  if (!codebook.prepare(codes, options.metric, kernels, first, threads, interruption)) return false;
  if (first.matrix || !first.narrow) return true;
  const vq_cpu::Certificate certificate(options.bound_scale);
  const vq_cpu::NarrowFactors factors = certificate.narrow(dim, first.narrow->rounds);
  const int team = vq_cpu::threads_for(threads, codes->count * dim);
  if (!narrow.prepare(codebook, first.narrow, factors, team, interruption)) return false;
  if (narrow.bounded()) return true;
  first = vq_cpu::FirstPass{VQ_FLOAT32_FIRST};
  return codebook.pack(kernels, team, interruption);
}

extern "C" int vq_cpu_prepare_codebook(const VqCodes* codebook, const VqSearchOptions* options, int threads,
                                       VqPreparedCodebook** prepared) {
  vq_cpu::Interruption interruption;
  const vq_cpu::DefaultRounding rounding;
  *prepared = new (std::nothrow) VqPreparedCodebook;
  if (*prepared && (*prepared)->prepare(codebook, *options, threads, &interruption)) return VQ_OK;
  vq_cpu_release_codebook(*prepared);
  *prepared = nullptr;
  return interruption.status(false);
}

extern "C" void vq_cpu_release_codebook(VqPreparedCodebook* prepared) { delete prepared; }
