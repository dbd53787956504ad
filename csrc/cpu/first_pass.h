// Which pass a search begins with: the one rule, by dimensions, codes and instruction set.
#pragma once

#include "cpu/narrow.h"

namespace vq_cpu {

// The kernels of the first pass, `matrix` or else `narrow`, and of those after it; none for the float32 sweep.
struct FirstPass {
  int kind;  // VqFirstPass
  const MatrixKernels* matrix = nullptr;
  // With `matrix` int8, or null where the instruction set has none: for rows that the matrix unit leaves too many codes,
  // as it has one bound for all of them, and for few rows, which would leave its tiles empty.
  const NarrowKernels* narrow = nullptr;
  // Bfloat16, for rows that int8 leaves too many codes: with more dimensions its bound grows faster than the distances
  // between scores. Null where the instruction set has none.
  const NarrowKernels* finer = nullptr;
};

// Whether the codes are to be searched as they are given (direct_search.h), without a first pass over packed ones.
bool rows_are_few(const VqRows* x, int64_t codes, int precision);

// The same for every precision: with a narrow pass all results are exact, as none would be faster for less.
FirstPass choose_first_pass(int64_t dim, int64_t codes);

}  // namespace vq_cpu
