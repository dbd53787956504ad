#include "cpu/narrow_codebook.h"

#include <math.h>

#include "cpu/codebook.h"

namespace vq_cpu {
namespace {

constexpr int64_t kTaskCodes = 64;
// Squares of norms beyond which a code cannot be the nearest of a row that has a bound (docs/certificate.md).
constexpr float kFarSquare = 0x1p100f;

// The power of two that brings ordinary codes to lengths of 1 to 2.
float scale_for(double typical_norm) {
  if (!(typical_norm > 0.0)) return 1.0f;
  int exponent = 1 - ilogb(typical_norm);
  exponent = exponent > 126 ? 126 : exponent < -126 ? -126 : exponent;
  return ldexpf(0.5f, exponent);
}

}  // namespace

bool NarrowCodebook::prepare(const Codebook& codebook, const NarrowKernels* kernels, const NarrowFactors& factors,
                             int threads, Interruption* interruption) {
  const int64_t dim = codebook.dim, group = kernels->group;
  const int64_t steps = divide_up(dim, kernels->unit), groups = divide_up(codebook.count, group);
  const int64_t padded = groups * group;
  if (!packed_.resize(padded * steps) || !start_.resize(padded) || !scale_.resize(padded) ||
      !lost_.resize(padded) || !kept_.resize(padded) || !minus_half_.resize(padded) || !centre_.resize(dim))
    return false;
  centring_ = {scale_for(codebook.typical_norm), codebook.l2 ? centre_.get() : nullptr};
  double square = 0.0;
  for (int64_t d = 0; codebook.l2 && d < dim; ++d) {
    centre_[d] = codebook.centre[d] * centring_.scale;
    square += double(centre_[d]) * double(centre_[d]);
  }
  centre_norm_ = sqrt(square);
  codes_ = {dim, steps, groups, packed_, start_, scale_, lost_, kept_, minus_half_};
  const int64_t task_groups = kTaskCodes / group;
  return parallel_for(threads, divide_up(groups, task_groups), interruption, kTaskCodes * dim, [&](int64_t t) {
    bool far = false;
    for (int64_t g = t * task_groups; g < groups && g < (t + 1) * task_groups; ++g) {
      const int64_t first = g * group;
      const int n = int(codebook.count - first < group ? codebook.count - first : group);
      const NarrowGroup out = {packed_ + first * steps, start_ + first,         scale_ + first,
                               lost_ + first,           kept_ + first, minus_half_ + first};
      kernels->pack_codes(codebook.codes + first * dim, codebook.usable + first, centring_, n, dim, &out);
      for (int64_t j = first; j < first + group; ++j) {
        const float norm2 = minus_half_[j];  // pack_codes left the square norm there, -1 for an unusable code
        if (norm2 >= 0.0f && norm2 <= kFarSquare) {
          const float half = codebook.l2 ? 0.5f * norm2 : 0.0f;
          minus_half_[j] = factors.half * half + factors.offset - half;
        } else {
          far = far || norm2 != -1.0f;
          minus_half_[j] = -INFINITY;
          scale_[j] = lost_[j] = kept_[j] = 0.0f;
        }
      }
    }
    if (far && !codebook.l2) {
#pragma omp critical(vq_narrow_codebook_bounded)
      bounded_ = false;
    }
  });
}

}  // namespace vq_cpu
