#pragma once

#include "cpu/kernels.h"

namespace vq_cpu {

// Counts and sums of the rows whose slot is 0 .. codes - 1. Returns a VqStatus.
int count_and_sum(const Kernels* kernels, const VqRows* x, const int64_t* slots, int64_t codes, int threads,
                  int64_t* counts, float* sums);

}  // namespace vq_cpu
