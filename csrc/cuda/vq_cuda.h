// The plain C door of the CUDA kernels: pointers, sizes, strides, a device and a stream.
//
// Every function enqueues work on `stream` and returns without waiting: 0 (cudaSuccess) or a
// cudaError_t. Pointers are device pointers unless said otherwise; strides count elements. The
// caller has checked shapes, dtypes and devices.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum VqDtype { VQ_FLOAT32 = 0, VQ_BFLOAT16 = 1, VQ_FLOAT16 = 2 };
enum VqMetric { VQ_L2 = 0, VQ_COSINE = 1 };
enum VqPrecision { VQ_EXACT = 0, VQ_HIGH = 1, VQ_FAST = 2 };

// Rows [batches, rows, dim] with any strides.
typedef struct VqCudaRows {
  void* data;
  int dtype;
  int64_t batches, rows, dim;
  int64_t stride_batch, stride_row, stride_dim;
} VqCudaRows;

// A contiguous codebook [count, dim].
typedef struct VqCudaCodes {
  const void* data;
  int dtype;
  int64_t count, dim;
} VqCudaCodes;

typedef struct VqCudaStream {
  int device;
  void* stream;
} VqCudaStream;

// Outputs of the fused step besides the indices. counts and sums are both null or both given.
typedef struct VqCudaOutputs {
  const VqCudaRows* out;  // host pointer; x's dtype and sizes
  const uint8_t* mask;  // [batches, rows], or null
  float* mse;  // []
  int64_t* valid_rows;  // []
  int64_t* counts;  // [K]
  float* sums;  // [K, D]
} VqCudaOutputs;

// Bytes of device memory that the search needs; outputs is null for the search alone.
int vq_cuda_search_workspace(const VqCudaRows* x, const VqCudaCodes* codebook, int precision, int fused,
                             int statistics, int device, int64_t* bytes);
int vq_cuda_nearest_code(const VqCudaRows* x, const VqCudaCodes* codebook, int metric, int precision,
                         int64_t* indices, void* workspace, int64_t workspace_bytes, VqCudaStream stream);
int vq_cuda_vector_quantize(const VqCudaRows* x, const VqCudaCodes* codebook, int metric, int precision,
                            int64_t* indices, const VqCudaOutputs* outputs, void* workspace,
                            int64_t workspace_bytes, VqCudaStream stream);

int vq_cuda_gather_codes(const VqCudaCodes* codebook, const int64_t* indices, const VqCudaRows* out,
                         VqCudaStream stream);

int64_t vq_cuda_statistics_workspace(int64_t rows, int64_t codes, int64_t dim);
int vq_cuda_code_statistics(const VqCudaRows* x, const int64_t* indices, int64_t codes, int skip_nonfinite,
                            int64_t* counts, float* sums, void* workspace, int64_t workspace_bytes,
                            VqCudaStream stream);

int64_t vq_cuda_ema_workspace(int64_t codes);
// counts is float32 if counts_are_float, else int64.
int vq_cuda_ema_update(float* codebook, float* cluster_size, float* embed_avg, const void* counts,
                       int counts_are_float, const float* sums, int64_t codes, int64_t dim,
                       float decay_complement, float eps, int normalize, void* workspace,
                       int64_t workspace_bytes, VqCudaStream stream);

// grad_quantized (host pointer) and grad_loss may be null.
int vq_cuda_backward(const VqCudaRows* grad_quantized, const float* grad_loss, const VqCudaRows* x,
                     const VqCudaCodes* codebook, const int64_t* indices, const int64_t* valid_rows,
                     float scale, int rotation, const VqCudaRows* out, VqCudaStream stream);

int vq_cuda_device_capability(int device, int* major, int* minor);
const char* vq_cuda_error_name(int error);
const char* vq_cuda_error_text(int error);

#ifdef __cplusplus
}
#endif
