// The instructions that C++ has no word for, each in one small function, so that a host build of the
// same sources can give each a host definition (tests/cuda_host does).
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#include "cuda_host_ptx.h"
#else

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace vq_cuda {

__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char vq_dynamic_shared[];
  return vq_dynamic_shared;
}

// Barrier over all blocks of a cooperative launch.
__device__ inline void grid_barrier() {
  cooperative_groups::this_grid().sync();
}

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory, both 16-byte aligned, past the registers and L1.
__device__ inline void copy_async16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
#else
  __trap();
#endif
}

__device__ inline void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most PENDING of this thread's committed groups are under way.
template <int PENDING>
__device__ inline void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void load_matrix_x4(uint32_t (&r)[4], const void* shared) {
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared))
               : "memory");
#else
  __trap();
#endif
}

#if __CUDA_ARCH__ >= 800
#define VQ_MMA(TYPE)                                                                                          \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "    \
      "{%0, %1, %2, %3};"                                                                                     \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                        \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#else
#define VQ_MMA(TYPE) __trap()
#endif

// c[16x8] += a[16x16] b[16x8] of 16-bit numbers with float32 accumulators.
template <typename T>
__device__ inline void multiply_16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void multiply_16<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  VQ_MMA("f16.f16");
}
template <>
__device__ inline void multiply_16<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
  VQ_MMA("bf16.bf16");
}
#undef VQ_MMA

}  // namespace vq_cuda

#endif
