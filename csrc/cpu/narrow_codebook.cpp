#include "cpu/narrow_codebook.h"

#include <math.h>

#include "cpu/codebook.h"

namespace vq_cpu {
namespace {

constexpr int64_t kTaskCodes = 64;

}  // namespace

bool NarrowCodebook::prepare(const Codebook& codebook, const NarrowKernels* kernels, const NarrowFactors& factors,
                             int threads, Interruption* interruption) {
  const int64_t dim = codebook.dim, group = kernels->group;
  const int64_t steps = kernels->steps(dim), groups = divide_up(codebook.count, group);
  const int64_t padded = groups * group;
  if (!packed_.resize(padded * steps) || !start_.resize(padded) || !scale_.resize(padded) ||
      !lost_.resize(padded) || !kept_.resize(padded) || !minus_half_.resize(padded) || !centre_.resize(dim) ||
      !most_lost_.resize(groups) || !most_kept_.resize(groups) || !most_half_.resize(groups) ||
      !least_lost_.resize(groups) || !least_kept_.resize(groups) || !more_lost_.resize(padded) ||
      !more_kept_.resize(padded))
    return false;
  centring_ = {unit_scale(codebook.typical_norm), centre_};
  row_centring_ = {centring_.scale, codebook.l2 ? centre_.get() : nullptr};
  double square = 0.0;
  for (int64_t d = 0; d < dim; ++d) {
    centre_[d] = codebook.centre[d] * centring_.scale;
    square += double(centre_[d]) * double(centre_[d]);
  }
  centre_norm_ = sqrt(square);
  codes_ = {dim,   steps, groups,      packed_,    start_,     scale_,
            lost_, kept_, minus_half_, most_lost_, most_kept_, most_half_,
            least_lost_, least_kept_, more_lost_, more_kept_};
  factors_ = factors;
  const int64_t task_groups = kTaskCodes / group;
  const bool done = parallel_for(threads, divide_up(groups, task_groups), interruption, kTaskCodes * dim, [&](int64_t t) {
    bool far = false;
    for (int64_t g = t * task_groups; g < groups && g < (t + 1) * task_groups; ++g) {
      const int64_t first = g * group;
      const int n = int(codebook.count - first < group ? codebook.count - first : group);
      const NarrowGroup out = {packed_ + first * steps, start_ + first,         scale_ + first,
                               lost_ + first,           kept_ + first, minus_half_ + first};
      kernels->pack_codes(codebook.codes + first * dim, codebook.usable + first, centring_, n, dim, &out);
      for (int64_t j = first; j < first + group; ++j) {
        const float norm2 = minus_half_[j];  // pack_codes left the square norm there, -1 for an unusable code
        if (norm2 >= 0.0f && norm2 <= kNarrowMostSquare) {
          const float half = codebook.l2 ? 0.5f * norm2 : 0.0f;
          minus_half_[j] = factors.half * half + factors.offset - half;
        } else {
          far = far || norm2 != -1.0f;
          minus_half_[j] = -INFINITY;
        }
      }
      sum_up_group(g, group, codebook.l2);
    }
    if (far) {
#pragma omp critical(vq_narrow_codebook_far)
      has_far_ = true;
    }
  });
  if (done) kernels_ = kernels;
  return done;
}

void NarrowCodebook::sum_up_group(int64_t g, int64_t group, bool l2) {
  constexpr float kMostRatio = 2.0f;
  float lost[2] = {INFINITY, 0.0f}, kept[2] = {INFINITY, 0.0f}, half = 0.0f;
  for (int64_t j = g * group; j < (g + 1) * group; ++j) {
    if (minus_half_[j] == -INFINITY) continue;
    lost[0] = fminf(lost[0], lost_[j]);
    lost[1] = fmaxf(lost[1], lost_[j]);
    kept[0] = fminf(kept[0], kept_[j]);
    kept[1] = fmaxf(kept[1], kept_[j]);
    half = fmaxf(half, -minus_half_[j]);
  }
  const bool alike = lost[1] <= kMostRatio * lost[0] && kept[1] <= kMostRatio * kept[0];
  most_lost_[g] = alike ? lost[1] : INFINITY;
  most_kept_[g] = kept[1];
  most_half_[g] = l2 ? half : 0.0f;
  least_lost_[g] = lost[0] < INFINITY ? lost[0] : 0.0f;
  least_kept_[g] = kept[0] < INFINITY ? kept[0] : 0.0f;
  for (int64_t j = g * group; j < (g + 1) * group; ++j) {
    more_lost_[j] = fmaxf(lost_[j] - least_lost_[g], 0.0f);
    more_kept_[j] = fmaxf(kept_[j] - least_kept_[g], 0.0f);
  }
}

}  // namespace vq_cpu
