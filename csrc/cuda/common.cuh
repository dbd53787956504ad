// What every kernel shares: dtypes, row addressing, reductions in a fixed order, launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "ptx.cuh"
#include "vq_cuda.h"

namespace vq_cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kInfinity = __builtin_huge_valf();

__device__ inline float to_float(float v) {
  return v;
}
__device__ inline float to_float(__nv_bfloat16 v) {
  return __bfloat162float(v);
}
__device__ inline float to_float(__half v) {
  return __half2float(v);
}

template <typename T>
__device__ inline T from_float(float v);
template <>
__device__ inline float from_float<float>(float v) {
  return v;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}
template <>
__device__ inline __half from_float<__half>(float v) {
  return __float2half_rn(v);
}

// By bits, so that no compiler option can assume it away.
__device__ inline bool is_finite(float v) {
  return (__float_as_uint(v) & 0x7fffffffu) < 0x7f800000u;
}

// x - e as statistics sum it: an entry of a code that is not finite counts as 0.
__device__ inline float summed_difference(float x, float e) {
  return is_finite(e) ? x - e : x;
}

struct Strides {
  int64_t batch, row, dim;
};

// Addressing of rows [batches, rows_per_batch, dim]; row n is (n / rows_per_batch, n % rows_per_batch).
struct RowMap {
  Strides strides;
  int64_t rows_per_batch;

  __device__ int64_t offset(int64_t n) const {
    if (n < rows_per_batch) return n * strides.row;
    if ((n | rows_per_batch) < INT64_C(0x80000000)) {
      const unsigned batch = static_cast<unsigned>(n) / static_cast<unsigned>(rows_per_batch);
      const unsigned row = static_cast<unsigned>(n) - batch * static_cast<unsigned>(rows_per_batch);
      return batch * strides.batch + row * strides.row;
    }
    const int64_t batch = n / rows_per_batch;
    return batch * strides.batch + (n - batch * rows_per_batch) * strides.row;
  }
};

inline RowMap row_map(const VqRows& r) {
  const Strides strides{r.stride_batch, r.stride_row, r.stride_dim};
  // Batches that follow one another are one, whose row numbers nobody divides.
  if (r.batches <= 1 || r.stride_batch == r.rows * r.stride_row) return RowMap{strides, INT64_MAX};
  // At least one, so that an empty batch divides by nothing.
  return RowMap{strides, r.rows > 0 ? r.rows : 1};
}

// Whether every row can be read and written VECTOR elements, 16 bytes, at a time.
template <int VECTOR>
inline bool rows_are_vectors(const VqRows& r) {
  return r.stride_dim == 1 && r.dim % VECTOR == 0 && r.stride_row % VECTOR == 0 &&
         (r.batches <= 1 || r.stride_batch % VECTOR == 0) && reinterpret_cast<uintptr_t>(r.data) % 16 == 0;
}

// Whether neighbouring threads should take neighbouring rows (channel-first) and not elements of a row.
inline bool rows_are_contiguous(const VqRows& r) {
  return r.stride_row == 1 && r.stride_dim != 1;
}

template <typename T>
__device__ inline T warp_sum(T v) {
  for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}

// Of values that are not negative: their bits are ordered as they are.
__device__ inline float warp_max(float v) {
#if __CUDA_ARCH__ >= 800
  return __uint_as_float(__reduce_max_sync(kAllLanes, __float_as_uint(v)));
#else
  for (int step = kWarp / 2; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
#endif
}

// Sum over the block in an order that depends on THREADS alone; every thread gets it. scratch holds
// THREADS / 32 values; a barrier stands before its first use and after its last.
template <int THREADS, typename T>
__device__ inline T block_sum(T v, T* scratch) {
  v = warp_sum(v);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = v;
  __syncthreads();
  T total = scratch[0];
  for (int w = 1; w < THREADS / kWarp; ++w) total += scratch[w];
  __syncthreads();
  return total;
}

template <int THREADS>
__device__ inline float block_max(float v, float* scratch) {
  v = warp_max(v);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = v;
  __syncthreads();
  float top = scratch[0];
  for (int w = 1; w < THREADS / kWarp; ++w) top = fmaxf(top, scratch[w]);
  __syncthreads();
  return top;
}

// True in the block that is the last of `blocks` to come here, which then sees what the others wrote.
__device__ inline bool is_last_block(unsigned* ticket, unsigned blocks, int* scratch) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *scratch = atomicAdd(ticket, 1u) == blocks - 1;
  __syncthreads();
  const bool last = *scratch != 0;
  if (last) __threadfence();
  return last;
}

// --- host side ---------------------------------------------------------------------------------------

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

// Makes `device` current for this module's own copy of the runtime, which may not have seen the caller
// change it. Cheap where it is current already.
inline cudaError_t select_device(int device) {
  return cudaSetDevice(device);
}

inline cudaError_t device_attribute(int* value, cudaDeviceAttr attribute, int device) {
  return cudaDeviceGetAttribute(value, attribute, device);
}

template <typename... Parameters>
cudaError_t allow_shared_memory(void (*kernel)(Parameters...), int64_t shared_bytes) {
  if (shared_bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(shared_bytes));
}

// Blocks of a kernel that a multiprocessor of the current device holds at a time; 0 if it cannot run.
template <typename... Parameters>
cudaError_t resident_blocks(int* blocks, void (*kernel)(Parameters...), int threads, int64_t shared_bytes) {
  const cudaError_t error = allow_shared_memory(kernel, shared_bytes);
  if (error != cudaSuccess) return error;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads,
                                                       static_cast<size_t>(shared_bytes));
}

// Launch of a kernel with plain C++ syntax. An error of an earlier, unrelated call is not ours to report.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
                   const VqCudaStream& stream, bool cooperative, const Arguments&... arguments) {
  const cudaError_t error = allow_shared_memory(kernel, shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream.stream);
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Calls f with a value of the C++ type of `dtype`.
template <typename F>
cudaError_t with_dtype(int dtype, F&& f) {
  switch (dtype) {
    case VQ_FLOAT32:
      return f(float{});
    case VQ_BFLOAT16:
      return f(__nv_bfloat16{});
    case VQ_FLOAT16:
      return f(__half{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace vq_cuda
