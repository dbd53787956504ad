// A codebook as a search takes it: packed for its first pass, and whatever later passes need of it.
//
// Made for one call, or once for many (vq_cpu_prepare_codebook). The instruction set is that of its making.
#pragma once

#include "cpu/codebook.h"
#include "cpu/first_pass.h"
#include "cpu/narrow_codebook.h"

struct VqPreparedCodebook {
  const vq_cpu::Kernels* kernels = nullptr;
  vq_cpu::FirstPass first = {};
  vq_cpu::Codebook codebook;
  vq_cpu::NarrowCodebook narrow;  // where the first pass is narrow; after a matrix unit once a search needed it
  vq_cpu::NarrowCodebook finer;   // for FirstPass::finer, once a search needed it

  // `codes` must outlive it. False if there is no memory or it was interrupted.
  bool prepare(const VqCodes* codes, const VqSearchOptions& options, int threads,
               vq_cpu::Interruption* interruption);
};
