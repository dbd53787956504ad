#pragma once

#include "cpu/interruption.h"
#include "cpu/kernels.h"

namespace vq_cpu {

// Counts and sums of the rows whose slot is 0 .. count - 1, of no others; with `codes` [count][dim], which are
// finite, the sums of row - code. False if there is no memory or it was interrupted.
bool count_and_sum(const Kernels* kernels, const VqRows* x, const int64_t* slots, const float* codes,
                   int64_t count, int threads, Interruption* interruption, int64_t* counts, float* sums);

}  // namespace vq_cpu
