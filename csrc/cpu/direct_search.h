// A few rows against codes as they are given: float32 straight away, threads share out the codes.
//
// Packing a codebook costs as much as comparing it with dozens of rows, so for so few it is read as it is, once.
// What float32 leaves open is scored in float64, and what that leaves open exactly.
#pragma once

#include "cpu/certificate.h"
#include "cpu/interruption.h"
#include "cpu/vq_cpu.h"

namespace vq_cpu {

enum class DirectResult { done, given_up, failed };

// All rows of x: index [rows], and nonfinite [rows], 1 where a row holds NaN or infinity (its index is 0). codes
// [count, dim]. Given up, with nothing of use written, where float32 leaves too many rows open; failed if there is
// no memory or it was interrupted.
DirectResult search_directly(const VqRows* x, const float* codes, int64_t count, const VqSearchOptions& options,
                             int threads, Interruption* interruption, int64_t* index, uint8_t* nonfinite);

}  // namespace vq_cpu
