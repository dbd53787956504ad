// A narrow pass with the codebook as it takes it, prepared once a call.
#pragma once

#include "cpu/narrow.h"
#include "cpu/support.h"

namespace vq_cpu {

struct Codebook;

class NarrowCodebook {
 public:
  // False if there is no memory or it was interrupted.
  bool prepare(const Codebook& codebook, const NarrowKernels* kernels, const NarrowFactors& factors, int threads,
               Interruption* interruption);
  bool prepared() const { return kernels_ != nullptr; }
  const NarrowKernels& kernels() const { return *kernels_; }
  const NarrowFactors& factors() const { return factors_; }
  const NarrowCodes& codes() const { return codes_; }
  // Of codes, and of rows, of which nothing is subtracted for cosine.
  Centring centring() const { return centring_; }
  Centring row_centring() const { return row_centring_; }
  // How long a row may be to have a bound.
  float reach() const { return has_far_ ? kNarrowReachBesideFar : kNarrowReach; }
  double centre_norm() const { return centre_norm_; }  // scaled
  // False if no row has a bound: a code too long for one could be the best of any (cosine).
  bool bounded() const { return row_centring_.centre || !has_far_; }

 private:
  const NarrowKernels* kernels_ = nullptr;
  NarrowFactors factors_ = {};
  NarrowCodes codes_ = {};
  Centring centring_ = {}, row_centring_ = {};
  double centre_norm_ = 0.0;
  bool has_far_ = false;  // a code that is left out for its size
  Buffer<int32_t> packed_, start_;
  Buffer<float> scale_, lost_, kept_, minus_half_, centre_;   // [groups * group], [dim]
  Buffer<float> most_lost_, most_kept_, most_half_, least_lost_, least_kept_;  // [groups]
  Buffer<float> more_lost_, more_kept_;                        // [groups * group]

  void sum_up_group(int64_t g, int64_t group, bool l2);
};

}  // namespace vq_cpu
