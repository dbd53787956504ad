// The plain C door of the CUDA kernels: pointers, sizes, strides, a device and a stream.
//
// Every function enqueues work on `stream` and returns without waiting: 0 (cudaSuccess) or a
// cudaError_t. Structs are read on the host; the pointers in them, and all others unless said otherwise,
// are device pointers. The caller has checked shapes, dtypes and devices.
#pragma once

#include "vq_types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct VqCudaStream {
  int device;
  void* stream;
} VqCudaStream;

// Bytes of device memory that the search needs; fused: vector_quantize, with or without statistics.
int vq_cuda_search_workspace(const VqRows* x, const VqCodes* codebook, int precision, int fused,
                             int statistics, int device, int64_t* bytes);
// Where in that memory two uint32 lie afterwards: how many rows an exact search left open after its first pass, and
// after its second (0 where it has none).
int vq_cuda_open_counts(const VqRows* x, const VqCodes* codebook, int precision, int fused, int statistics, int device,
                        int64_t* bytes);
int vq_cuda_nearest_code(const VqRows* x, const VqCodes* codebook, const VqSearchOptions* options,
                         int64_t* indices, void* workspace, int64_t workspace_bytes, VqCudaStream stream);
// mask [batches, rows], nonzero where a row counts, or null.
int vq_cuda_vector_quantize(const VqRows* x, const VqCodes* codebook, const uint8_t* mask,
                            const VqQuantizeOptions* options, const VqQuantizeResult* result, void* workspace,
                            int64_t workspace_bytes, VqCudaStream stream);

int vq_cuda_gather_codes(const VqCodes* codebook, const int64_t* indices, const VqRows* quantized,
                         VqCudaStream stream);

int64_t vq_cuda_statistics_workspace(int64_t rows, int64_t codes, int64_t dim);
int vq_cuda_code_statistics(const VqRows* x, const int64_t* indices, int64_t codes, int skip_nonfinite,
                            int64_t* counts, float* sums, void* workspace, int64_t workspace_bytes,
                            VqCudaStream stream);

int64_t vq_cuda_ema_workspace(int64_t codes);
// counts is float32 if counts_are_float, else int64.
int vq_cuda_ema_update(float* codebook, float* cluster_size, float* embed_avg, const void* counts,
                       int counts_are_float, const float* sums, int64_t codes, int64_t dim,
                       float one_minus_decay, float eps, int normalize, void* workspace,
                       int64_t workspace_bytes, VqCudaStream stream);

// grad_x = estimator(grad_quantized) + grad_loss * scale / valid_rows * (x - code). grad_quantized and
// grad_loss may be null: zero, none. Rows with index -1 are 0; those whose index names no code are NaN.
int vq_cuda_vector_quantize_backward(const VqRows* grad_quantized, const float* grad_loss, const VqRows* x,
                                     const VqCodes* codebook, const int64_t* indices,
                                     const int64_t* valid_rows, float scale, int gradient,
                                     const VqRows* grad_x, VqCudaStream stream);

// First pass of the Triton backend's search, on compute capability 9.0 (vq_kernels/backends/triton/hopper.py), over
// a codebook that the backend has prepared.
typedef struct VqHopperSearch {
  const void* tiles;  // [padded_codes / 128] tiles in the matrix unit's order, 16 bits, negated
  const float* bias;  // [padded_codes]
  const float* centre;  // [dim]
  const float* extremes;  // [lines, 8]
  int64_t lines, codes, padded_codes, depth;
  int32_t split, centred, metric, exact;
  double accumulation, contract, slack, bound_scale;
  const uint8_t* mask;  // [rows] or null
  int64_t* open_count;  // added to
  int64_t* range;  // raised to the bits of the largest finite |x|; or null
  int64_t* indices;  // [rows]; -1 where masked, -2 where open
  int32_t* open_rows;  // [rows], null unless exact
  float* ceiling;  // [rows], null unless exact
} VqHopperSearch;
int vq_cuda_hopper_search(const VqRows* x, const VqHopperSearch* search, VqCudaStream stream);

int vq_cuda_device_capability(int device, int* major, int* minor);
const char* vq_cuda_error_name(int error);
const char* vq_cuda_error_text(int error);

#ifdef __cplusplus
}
#endif
