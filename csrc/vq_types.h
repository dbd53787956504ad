// What the C doors of the CPU and CUDA kernels (cpu/vq_cpu.h, cuda/vq_cuda.h) take and give: plain C, no
// torch, no Python. Pointers are addresses of the device that the kernels run on.
//
// Everywhere the fused step's results have one order: quantized, indices, loss, valid_rows, counts, sums,
// codebook_copy.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum VqDtype { VQ_FLOAT32 = 0, VQ_BFLOAT16 = 1, VQ_FLOAT16 = 2 };
enum VqMetric { VQ_L2 = 0, VQ_COSINE = 1 };
enum VqPrecision { VQ_EXACT = 0, VQ_HIGH = 1, VQ_FAST = 2 };
enum VqGradient { VQ_STRAIGHT_THROUGH = 0, VQ_ROTATION_TRICK = 1 };

// [batches, rows, dim] with strides in elements; row number n is (n / rows, n % rows).
typedef struct VqRows {
  void* data;
  int64_t batches, rows, dim;
  int64_t stride_batch, stride_row, stride_dim;
  int32_t dtype;
} VqRows;

// A contiguous codebook [count, dim].
typedef struct VqCodes {
  const void* data;
  int64_t count, dim;
  int32_t dtype;
} VqCodes;

typedef struct VqSearchOptions {
  int32_t metric;
  int32_t precision;
  // Multiplies the error bounds that VQ_EXACT rests on: 1, but for tests that tighten them to see that they
  // are needed.
  double bound_scale;
} VqSearchOptions;

// What kernels read of Python's QuantizeOptions beside the search's: type and name of each attribute.
#define VQ_QUANTIZE_OPTIONS(FIELD) FIELD(float, loss_weight) FIELD(int32_t, sum_differences)

typedef struct VqQuantizeOptions {
  VqSearchOptions search;
#define VQ_DECLARE(type, name) type name;
  VQ_QUANTIZE_OPTIONS(VQ_DECLARE)
#undef VQ_DECLARE
} VqQuantizeOptions;

typedef struct VqQuantizeResult {
  VqRows quantized;  // x's dtype and sizes
  int64_t* indices;  // [batches, rows]; -1 where masked
  float* loss;  // []; loss_weight times the mean over unmasked rows and dim of (quantized - x)^2
  int64_t* valid_rows;  // []; unmasked rows
  int64_t* counts;  // [count], or null: no statistics
  float* sums;  // [count, dim], null where counts is; of x - e with sum_differences
  void* codebook_copy;  // [count, dim] of the codebook's dtype, or null
} VqQuantizeResult;

#ifdef __cplusplus
}
#endif
