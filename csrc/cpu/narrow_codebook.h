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
  // How long a row may be to have a bound, if any row has one (bounded()).
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
  Buffer<int32_t> packed_, start_, order_;
  Buffer<int> sizes_;                                // [groups]: how many codes a group has
  Buffer<uint8_t> uneven_;                           // [groups]
  Buffer<float> of_norm_, of_lost_, length_, minus_half_, centre_;  // [groups * group], [dim]
  Buffer<float> scale_, most_of_norm_, most_of_lost_, most_half_;   // [groups]

  bool sort_codes(int64_t group, const float* own_scale, const float* square, int64_t count);
  void pack_group(const Codebook& codebook, const NarrowKernels& kernels, const float* own_scale, const float* square,
                  int64_t g);
};

}  // namespace vq_cpu
