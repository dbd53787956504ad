#include "cpu/regions.h"

#include <math.h>
#include <string.h>

#include <algorithm>

#include "cpu/search.h"

namespace vq_cpu {
namespace {

constexpr int64_t kLeastCodes = 16;     // of a region that is divided once more
constexpr int64_t kCodesARegion = 32;   // at least on average: a row is compared with each centre
constexpr int64_t kLeastCodebook = 128;  // that is divided at all
constexpr int64_t kMostValues = 16 << 20;  // of codes that are copied

}  // namespace

bool CodeRegions::ensure(const Codebook& codebook, const Kernels* kernels) {
  bool ready;
#pragma omp critical(vq_code_regions)
  {
    if (!ready_) {
      codebook_ = &codebook;
      kernels_ = kernels;
      ready_ = divide(codebook);
    }
    ready = ready_;
  }
  return ready;
}

// The spread, and the coordinate to divide at. sums [2][dim], scratch.
void CodeRegions::measure(Region* region, double* sums) const {
  const int64_t dim = codebook_->dim, n = region->end - region->begin;
  double* squares = sums + dim;
  for (int64_t d = 0; d < 2 * dim; ++d) sums[d] = 0.0;
  // About one code, so that a common offset does not take the digits.
  const float* origin = codebook_->codes + int64_t(index_[region->begin]) * dim;
  for (int64_t i = region->begin; i < region->end; ++i) {
    const float* e = codebook_->codes + int64_t(index_[i]) * dim;
    for (int64_t d = 0; d < dim; ++d) {
      const double v = double(e[d]) - double(origin[d]);
      sums[d] += v;
      squares[d] += v * v;
    }
  }
  region->spread = 0.0;
  double most = -1.0;
  for (int64_t d = 0; d < dim; ++d) {
    const double mean = sums[d] / double(n), spread = squares[d] - sums[d] * mean;
    region->spread += spread;
    if (!(spread > most)) continue;
    most = spread;
    region->coordinate = d;
    region->middle = mean + double(origin[d]);
  }
}

// Leaves the codes below the middle in `region`, the others in `other`. False if one of them would be empty.
bool CodeRegions::split(Region* region, Region* other) {
  const float* values = codebook_->codes + region->coordinate;
  int64_t below = region->begin, above = 0;
  for (int64_t i = region->begin; i < region->end; ++i) {
    const int32_t code = index_[i];
    if (double(values[int64_t(code) * codebook_->dim]) < region->middle)
      index_[below++] = code;
    else
      other_[above++] = code;
  }
  memcpy(index_ + below, other_, size_t(above) * sizeof other_[0]);
  *other = {below, region->end, 0, 0.0, 0.0};
  region->end = below;
  return above && below > region->begin;
}

bool CodeRegions::divide(const Codebook& codebook) {
  const int64_t dim = codebook.dim;
  Buffer<double> sums;
  if (!index_.resize(codebook.count) || !other_.resize(codebook.count) || !sums.resize(2 * dim)) return false;
  count_ = 0;
  for (int64_t j = 0; j < codebook.count; ++j)
    if (codebook.usable[j]) index_[count_++] = int32_t(j);
  if (!codes_.resize(count_ * dim) || !centres_.resize(kMost * dim) || !usable_.resize(count_) ||
      !half_squares_.resize(count_) || !lengths_.resize(count_) ||
      (codebook.scaled != codebook.codes && !scaled_copy_.resize(count_ * dim)))
    return false;
  Region regions[kMost] = {{0, count_, 0, 0.0, 0.0}};
  regions_ = count_ ? 1 : 0;
  if (count_) measure(&regions[0], sums);
  const int64_t most = std::min<int64_t>(kMost, count_ / kCodesARegion);
  while (regions_ && regions_ < most) {
    Region* widest = std::max_element(regions, regions + regions_,
                                      [](const Region& a, const Region& b) { return a.spread < b.spread; });
    if (!(widest->spread > 0.0)) break;
    if (widest->end - widest->begin < kLeastCodes || !split(widest, &regions[regions_])) {
      widest->spread = 0.0;  // stays as it is
      continue;
    }
    measure(widest, sums);
    measure(&regions[regions_++], sums);
  }
  std::sort(regions, regions + regions_, [](const Region& a, const Region& b) { return a.begin < b.begin; });
  for (int g = 0; g < regions_; ++g) begin_[g] = regions[g].begin;
  begin_[regions_] = count_;
  gather(codebook);
  return true;
}

void CodeRegions::gather(const Codebook& codebook) {
  const int64_t dim = codebook.dim;
  for (int g = 0; g < regions_; ++g) std::sort(index_ + begin_[g], index_ + begin_[g + 1]);
  for (int64_t i = 0; i < count_; ++i) {
    const int64_t code = index_[i];
    memcpy(codes_ + i * dim, codebook.codes + code * dim, size_t(dim) * sizeof(float));
    if (scaled_copy_.get())
      memcpy(scaled_copy_ + i * dim, codebook.scaled + code * dim, size_t(dim) * sizeof(float));
    half_squares_[i] = codebook.half_squares[code];
    lengths_[i] = codebook.lengths[code];
    usable_[i] = 1;
  }
  scaled_ = scaled_copy_.get() ? scaled_copy_ : codes_;
  for (int g = 0; g < regions_; ++g) {
    float* centre = centres_ + g * dim;
    const int64_t n = begin_[g + 1] - begin_[g];
    for (int64_t d = 0; d < dim; ++d) {
      double sum = 0.0;
      for (int64_t i = begin_[g]; i < begin_[g + 1]; ++i) sum += double(codes_[i * dim + d]);
      centre[d] = float(sum / double(n));
    }
    kernels_->square_distances(centre, 1, dim, nullptr, &centre2_[g]);
    radius_[g] = length_[g] = 0.0;
    for (int64_t i = begin_[g]; i < begin_[g + 1]; ++i) {
      double square;
      kernels_->square_distances(codes_ + i * dim, 1, dim, centre, &square);
      radius_[g] = std::max(radius_[g], sqrt(square));
      length_[g] = std::max(length_[g], lengths_[i]);
    }
  }
}

// |x - e| lies within the radius of |x - c|, and x.e within |x| times the radius of x.c; the rest is for rounding, and
// for the contract's own score.
unsigned CodeRegions::needed(const float* row) const {
  const int64_t dim = codebook_->dim;
  double squares[kMost], lows[kMost], norm2 = 0.0, limit = INFINITY;
  kernels_->square_distances(row, 1, dim, nullptr, &norm2);
  kernels_->square_distances(centres_, regions_, dim, row, squares);
  const double rounding = (double(dim) + 64.0) * 0x1p-46, norm = sqrt(norm2);
  for (int g = 0; g < regions_; ++g) {
    const double distance = sqrt(squares[g]), radius = radius_[g];
    const double reach = length_[g] + radius, error = rounding * (norm2 + reach * reach);
    double low, high;
    if (codebook_->l2) {
      low = distance > radius ? (distance - radius) * (distance - radius) : 0.0;
      high = (distance + radius) * (distance + radius);
    } else {  // |x|^2 - 2 x.c and what the radius adds
      low = squares[g] - centre2_[g] - 2.0 * norm * radius;
      high = squares[g] - centre2_[g] + 2.0 * norm * radius;
    }
    lows[g] = low - error;
    limit = std::min(limit, high + error);
  }
  unsigned regions = 0;
  for (int g = 0; g < regions_; ++g) regions |= unsigned(!(lows[g] > limit)) << g;
  return regions;
}

int CodeRegions::spans(unsigned regions, int64_t* spans) const {
  int n = 0;
  for (int g = 0; g < regions_; ++g) {
    if (!(regions >> g & 1)) continue;
    if (n && spans[2 * n - 1] == begin_[g])
      spans[2 * n - 1] = begin_[g + 1];
    else {
      spans[2 * n] = begin_[g];
      spans[2 * n++ + 1] = begin_[g + 1];
    }
  }
  return n;
}

int64_t CodeRegions::size(unsigned regions) const {
  int64_t size = 0;
  for (int g = 0; g < regions_; ++g)
    if (regions >> g & 1) size += begin_[g + 1] - begin_[g];
  return size;
}

bool RegionOrder::is_wanted(const Codebook& codebook, int rows) {
  if (codebook.count < kLeastCodebook || codebook.count * codebook.dim > kMostValues || rows < 2 * kExactLanes)
    return false;
  if (!skip_) return true;
  --skip_;
  return false;
}

bool RegionOrder::sort(Search* search, const RowBlock& block, int* rows, int n) {
  CodeRegions& regions = search->codebook.regions;
  if (!keys_.get() && !(keys_.resize(search->block_rows) && row_.resize(search->x->dim))) return false;
  if (!search->codebook.ensure_lengths(search->kernels) || !search->codebook.ensure_scaled() ||
      !regions.ensure(search->codebook, search->kernels))
    return false;
  for (int i = 0; i < n; ++i) {
    search->kernels->load_rows(search->x, block.first + rows[i], 1, row_);
    keys_[i] = uint64_t(regions.needed(row_)) << 32 | uint64_t(rows[i]);
  }
  std::sort(keys_.get(), keys_.get() + n);
  for (int i = 0; i < n; ++i) rows[i] = int(keys_[i] & 0xffffffffu);
  return true;
}

}  // namespace vq_cpu
