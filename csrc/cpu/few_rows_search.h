// A handful of rows against all codes: float64 straight away, threads share out the codes.
//
// Packing a codebook costs as much as comparing it with several rows, so for so few rows it is read once
// as it is. What float64 leaves open is scored exactly.
#pragma once

#include "cpu/certificate.h"
#include "cpu/interruption.h"
#include "cpu/vq_cpu.h"

namespace vq_cpu {

// Up to this many rows it is the faster way to the exact result. Other precisions do not take it, so that a
// row's index does not depend on its batch there either.
constexpr int kFewRows = 4;

inline bool rows_are_few(const VqRows* x, int precision) {
  return precision == VQ_EXACT && x->batches * x->rows <= kFewRows;
}

// All rows of x: index [rows], and nonfinite [rows], 1 where a row holds NaN or infinity (its index is 0).
// codes [count, dim]. False if there is no memory or it was interrupted.
bool search_few_rows(const VqRows* x, const float* codes, int64_t count, const VqSearchOptions& options,
                     int threads, Interruption* interruption, int64_t* index, uint8_t* nonfinite);

}  // namespace vq_cpu
