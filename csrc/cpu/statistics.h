#pragma once

#include "cpu/kernels.h"

// Counts and sums of the rows whose slot is 0 .. k - 1. Returns a VqStatus.
int count_and_sum(const VqKernels* kernels, const VqRows* x, const int64_t* slots, int64_t k, int threads,
                  int64_t* counts, float* sums);
