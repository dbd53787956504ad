#include "cpu/narrow_codebook.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <initializer_list>

#include "cpu/codebook.h"

namespace vq_cpu {
namespace {

constexpr int64_t kTaskCodes = 64;
constexpr float kMostRatio = 2.0f;  // of what the codes of a group are alike in
constexpr int64_t kOctaves = 256;   // of a float: groups that may end early because the next code's scale is too large

// order [n]: the numbers of a list by their keys, which are positive, to one part in 2^8.
bool sort_by_key(const float* keys, int64_t n, int32_t* order) {
  constexpr int kBits = 8, kPasses = 2, kShift = 15;  // exponents and the highest bits of significands
  Buffer<int32_t> other;
  if (!other.resize(n)) return false;
  int32_t *from = order, *to = other;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto digit = [&](int32_t j) {
      uint32_t bits;
      memcpy(&bits, keys + j, sizeof bits);
      return bits >> (kShift + pass * kBits) & ((1u << kBits) - 1u);
    };
    int64_t starts[(1 << kBits) + 1] = {};
    for (int64_t i = 0; i < n; ++i) ++starts[digit(from[i]) + 1];
    for (int b = 0; b < 1 << kBits; ++b) starts[b + 1] += starts[b];
    for (int64_t i = 0; i < n; ++i) to[starts[digit(from[i])]++] = from[i];
    int32_t* const swap = from;
    from = to;
    to = swap;
  }
  static_assert(kPasses % 2 == 0, "the last pass writes to `order`");
  return true;
}

}  // namespace

bool NarrowCodebook::prepare(const Codebook& codebook, const NarrowKernels* kernels, const NarrowFactors& factors,
                             int threads, Interruption* interruption) {
  const int64_t dim = codebook.dim, group = kernels->group, count = codebook.count;
  Buffer<float> own_scale, square;
  if (!own_scale.resize(count) || !square.resize(count) || !centre_.resize(dim)) return false;
  centring_ = {unit_scale(codebook.typical_norm), centre_};
  row_centring_ = {centring_.scale, codebook.l2 ? centre_.get() : nullptr};
  double centre_square = 0.0;
  for (int64_t d = 0; d < dim; ++d) {
    centre_[d] = codebook.centre[d] * centring_.scale;
    centre_square += double(centre_[d]) * double(centre_[d]);
  }
  centre_norm_ = sqrt(centre_square);
  factors_ = factors;
  const auto measure = [&](int64_t t) {
    const int64_t first = t * kTaskCodes, n = count - first < kTaskCodes ? count - first : kTaskCodes;
    kernels->measure_codes(codebook.codes + first * dim, codebook.usable + first, centring_, n, dim,
                           own_scale + first, square + first);
  };
  if (!parallel_for(threads, divide_up(count, kTaskCodes), interruption, kTaskCodes * dim, measure) ||
      !sort_codes(group, own_scale, square, count))
    return false;
  for (int64_t j = 0; j < count; ++j) has_far_ = has_far_ || !(square[j] == -1.0f || square[j] <= kNarrowMostSquare);
  const int64_t groups = codes_.groups, padded = groups * group;
  const int64_t steps = kernels->steps(dim);
  for (Buffer<float>* of_codes : {&of_norm_, &of_lost_, &length_, &minus_half_})
    if (!of_codes->resize(padded)) return false;
  for (Buffer<float>* of_groups : {&scale_, &most_of_norm_, &most_of_lost_, &most_half_})
    if (!of_groups->resize(groups)) return false;
  if (!packed_.resize(padded * steps) || !start_.resize(padded) || !uneven_.resize(groups)) return false;
  codes_ = {dim,      steps,   groups,      packed_,       start_,        order_,     scale_,
            of_norm_, of_lost_, length_, minus_half_, most_of_norm_, most_of_lost_, most_half_, uneven_};
  const int64_t task_groups = kTaskCodes / group;
  const auto pack = [&](int64_t t) {
    for (int64_t g = t * task_groups; g < groups && g < (t + 1) * task_groups; ++g)
      pack_group(codebook, *kernels, own_scale, square, g);
  };
  if (!parallel_for(threads, divide_up(groups, task_groups), interruption, kTaskCodes * dim, pack)) return false;
  kernels_ = kernels;
  return true;
}

// Groups of codes alike in scale, which then share one: order_, sizes_ and the number of groups. Codes that cannot be
// chosen, or are too far to be near, are in none.
bool NarrowCodebook::sort_codes(int64_t group, const float* own_scale, const float* square, int64_t count) {
  Buffer<int32_t> sorted;
  if (!sorted.resize(count)) return false;
  int64_t n = 0;
  for (int64_t j = 0; j < count; ++j) {
    sorted[n] = int32_t(j);
    n += square[j] >= 0.0f && square[j] <= kNarrowMostSquare;
  }
  const int64_t most_groups = divide_up(n, group) + kOctaves;
  if (!sort_by_key(own_scale, n, sorted) || !order_.resize(most_groups * group) || !sizes_.resize(most_groups))
    return false;
  memset(order_, 0, size_t(most_groups * group) * sizeof *order_.get());
  sizes_[0] = 0;  // one group without codes where none can be chosen
  codes_.groups = 1;
  float least = INFINITY;  // scale of the group
  for (int64_t i = 0; i < n; ++i) {
    const float scale = own_scale[sorted[i]];
    int64_t g = codes_.groups - 1;
    if (sizes_[g] == group || scale > kMostRatio * least) sizes_[g = codes_.groups++] = 0;
    if (sizes_[g] == 0) least = scale;
    order_[g * group + sizes_[g]++] = sorted[i];
  }
  return true;
}

void NarrowCodebook::pack_group(const Codebook& codebook, const NarrowKernels& kernels, const float* own_scale,
                                const float* square, int64_t g) {
  const int64_t group = kernels.group, first = g * group;
  const int n = sizes_[g];
  scale_[g] = 0.0f;
  for (int c = 0; c < n; ++c) scale_[g] = std::max(scale_[g], own_scale[order_[first + c]]);
  // |g| and |t p| until these are known.
  float *lost = of_norm_ + first, *kept = of_lost_ + first;
  const NarrowGroup out = {order_ + first, n, scale_[g], packed_ + first * codes_.steps, start_ + first, lost, kept};
  kernels.pack_codes(codebook.codes, square, centring_, codebook.dim, &out);
  float least_of_norm = INFINITY, most_of_norm = 0.0f, least_of_lost = INFINITY, most_of_lost = 0.0f, most_half = 0.0f;
  for (int c = 0; c < group; ++c) {
    const int64_t j = first + c;
    length_[j] = lost[c] + kept[c];
    of_norm_[j] = factors_.lost * lost[c] + factors_.kept * kept[c];
    of_lost_[j] = factors_.lost * kept[c];
    minus_half_[j] = -INFINITY;
    if (c >= n) continue;
    const float half = codebook.l2 ? 0.5f * square[order_[j]] : 0.0f;
    minus_half_[j] = factors_.half * half + factors_.offset - half;
    least_of_norm = std::min(least_of_norm, of_norm_[j]);
    most_of_norm = std::max(most_of_norm, of_norm_[j]);
    least_of_lost = std::min(least_of_lost, of_lost_[j]);
    most_of_lost = std::max(most_of_lost, of_lost_[j]);
    most_half = std::max(most_half, -minus_half_[j]);
  }
  most_of_norm_[g] = most_of_norm;
  most_of_lost_[g] = most_of_lost;
  most_half_[g] = codebook.l2 ? most_half : 0.0f;
  uneven_[g] = n && !(most_of_norm <= kMostRatio * least_of_norm && most_of_lost <= kMostRatio * least_of_lost);
}

}  // namespace vq_cpu
