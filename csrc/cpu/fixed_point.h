// Rows and codes as whole numbers of one unit, for scores that tie up to the last bits of float64.
//
// Where the contract's score is the real one (docs/certificate.md) it is a whole number of units. What float64
// leaves open lies within 2^58 of them, so that scores modulo 2^64 tell which is the least, exactly.
#pragma once

#include "cpu/support.h"

namespace vq_cpu {

struct Codebook;

// Codes as multiples of 2^unit, modulo 2^64.
class FixedCodes {
 public:
  // Once a call. False if they would take too much memory. Thread-safe.
  bool ensure(const Codebook& codebook);

  const int64_t* values() const { return values_; }  // [count][dim]
  const int64_t* halves() const { return halves_; }  // [count]: |e|^2 / 2 in units of 2^(2 unit - 1)
  const int64_t* sums() const { return sums_; }      // [count]: of a code's values
  int unit() const { return unit_; }

 private:
  enum class State { unknown, usable, unusable };

  bool prepare(const Codebook& codebook);

  Buffer<int64_t> values_, halves_, sums_;
  int unit_ = 0;
  State state_ = State::unknown;
};

// Row [dim] modulo 2^64 in multiples of a power of two, [dim][kExactLanes], so that its products with the codes and
// their halves times `factor` are of one unit. Returns the exponent of that unit.
int fix_row(const float* row, int64_t dim, const FixedCodes& codes, bool l2, uint64_t* out, int64_t* factor);

}  // namespace vq_cpu
