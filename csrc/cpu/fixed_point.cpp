#include "cpu/fixed_point.h"

#include <math.h>
#include <string.h>

#include "cpu/codebook.h"
#include "cpu/kernels.h"

namespace vq_cpu {
namespace {

constexpr int64_t kMostValues = 8 << 20;  // of all codes
constexpr int kNone = 1 << 20;            // the lowest bit of zero

// v = significand * 2^exponent.
struct Parts {
  int64_t significand;
  int exponent;
};

Parts parts_of(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  const int exponent = int(bits >> 23 & 255u);
  const int64_t fraction = bits & 0x7fffffu, size = exponent ? fraction | 0x800000 : fraction;
  return {bits >> 31 ? -size : size, (exponent ? exponent : 1) - 150};
}

// The exponent of the lowest bit that is set.
int lowest_bit(float v) {
  const Parts parts = parts_of(v);
  return parts.significand ? parts.exponent + __builtin_ctzll(uint64_t(parts.significand)) : kNone;
}

uint64_t shifted(uint64_t v, int by) { return by < 64 ? v << by : 0; }

// v / 2^unit modulo 2^64.
uint64_t fixed(float v, int unit) {
  const Parts parts = parts_of(v);
  const int up = parts.exponent - unit;
  if (!parts.significand) return 0;
  return up >= 0 ? shifted(uint64_t(parts.significand), up) : uint64_t(parts.significand >> -up);
}

}  // namespace

bool FixedCodes::ensure(const Codebook& codebook) {
  bool usable;
#pragma omp critical(vq_fixed_codes)
  {
    if (state_ == State::unknown) state_ = prepare(codebook) ? State::usable : State::unusable;
    usable = state_ == State::usable;
  }
  return usable;
}

bool FixedCodes::prepare(const Codebook& codebook) {
  const int64_t count = codebook.count, dim = codebook.dim;
  if (count * dim > kMostValues) return false;
  if (!values_.resize(count * dim) || !halves_.resize(count) || !sums_.resize(count)) return false;
  unit_ = kNone;
  for (int64_t j = 0; j < count; ++j)
    for (int64_t d = 0; codebook.usable[j] && d < dim; ++d) {
      const int low = lowest_bit(codebook.codes[j * dim + d]);
      unit_ = low < unit_ ? low : unit_;
    }
  if (unit_ == kNone) unit_ = 0;
  for (int64_t j = 0; j < count; ++j) {
    uint64_t half = 0, sum = 0;
    for (int64_t i = j * dim; i < (j + 1) * dim; ++i) {
      const uint64_t value = codebook.usable[j] ? fixed(codebook.codes[i], unit_) : 0;
      values_[i] = int64_t(value);
      half += value * value;
      sum += value;
    }
    halves_[j] = int64_t(half);
    sums_[j] = int64_t(sum);
  }
  return true;
}

int fix_row(const float* row, int64_t dim, const FixedCodes& codes, bool l2, uint64_t* out, int64_t* factor) {
  int low = kNone;
  for (int64_t d = 0; d < dim; ++d) {
    const int of = lowest_bit(row[d]);
    low = of < low ? of : low;
  }
  if (low == kNone) low = codes.unit() - 1;
  // By how much the unit of the products is above that of the halves.
  const int above = l2 ? low - (codes.unit() - 1) : 0, up = above > 0 ? above : 0;
  for (int64_t d = 0; d < dim; ++d) out[d * kExactLanes] = shifted(fixed(row[d], low), up);
  *factor = int64_t(shifted(1, up - above));
  return low + codes.unit() - up;
}

}  // namespace vq_cpu
