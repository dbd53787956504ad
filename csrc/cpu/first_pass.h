// Which pass a search begins with: the one rule, by dimensions, codes and instruction set.
#pragma once

#include "cpu/narrow.h"

namespace vq_cpu {

// The kernels of the first pass; at most one of `matrix` and `narrow` is set, none for the float32 sweep.
struct FirstPass {
  int kind;  // VqFirstPass
  const MatrixKernels* matrix = nullptr;
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
