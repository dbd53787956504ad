// Instructions of compute capability 9.0a: barriers in shared memory, bulk copies, and the warpgroup's matrix
// product. Each in one small function, as in ptx.cuh; the host build has definitions of its own.
#pragma once

#include "ptx.cuh"

#ifndef __CUDACC__
#include "cuda_host_hopper_ptx.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Other targets, plain sm_90 among them, do not have these instructions.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define VQ_HOPPER_ASM(...) asm volatile(__VA_ARGS__)
#else
#define VQ_HOPPER_ASM(...) __trap()
#endif

namespace vq_cuda {

// A barrier that a phase of `arrivals` arrivals, and of the bytes expected meanwhile, completes.
__device__ inline void barrier_init(uint64_t* barrier, int arrivals) {
  VQ_HOPPER_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// After barrier_init, before a __syncthreads(): the copy engine sees the barriers too.
__device__ inline void barrier_init_fence() {
  VQ_HOPPER_ASM("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void barrier_arrive(uint64_t* barrier) {
  VQ_HOPPER_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ inline void barrier_expect(uint64_t* barrier, int bytes) {
  VQ_HOPPER_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                : "memory");
}

// Waits for the end of a phase: the first has parity 0.
__device__ inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    VQ_HOPPER_ASM(
        "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

// Bytes and both addresses are multiples of 16; they count towards what the barrier expects.
__device__ inline void copy_bulk(void* shared, const void* global, int bytes, uint64_t* barrier) {
  VQ_HOPPER_ASM("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                    shared_address(shared)),
                "l"(global), "r"(bytes), "r"(shared_address(barrier))
                : "memory");
}

// Barrier of one warpgroup, number 1 and up.
__device__ inline void warpgroup_barrier(int number) {
  VQ_HOPPER_ASM("bar.sync %0, 128;" ::"r"(number) : "memory");
}

// Plain stores to shared memory before it are seen by the matrix unit after a barrier.
__device__ inline void fence_matrix_reads() {
  VQ_HOPPER_ASM("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void multiply_fence() {
  VQ_HOPPER_ASM("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void multiply_commit() {
  VQ_HOPPER_ASM("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int PENDING>
__device__ inline void multiply_wait() {
  VQ_HOPPER_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Where an operand lies in shared memory: core matrices of 8 rows by 16 bytes, 128 bytes to the next one along
// the depth and 256 along the rows, no swizzle. The lower half of the descriptor; the upper one is always the same.
__device__ inline uint32_t matrix_descriptor(uint32_t address) {
  return (address >> 4 & 0x3fff) | 128 >> 4 << 16;
}
constexpr uint64_t kDescriptorTop = uint64_t{256 >> 4} << 32;

// The descriptor so many bytes, a multiple of 16, further on.
__device__ inline uint32_t advance(uint32_t descriptor, int bytes) {
  return descriptor + static_cast<uint32_t>(bytes >> 4);
}

// Registers of each thread of this warpgroup from here on, a multiple of 8: the block's total stays what it was.
template <int COUNT>
__device__ inline void give_registers() {
  VQ_HOPPER_ASM("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ inline void take_registers() {
  VQ_HOPPER_ASM("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// bits * factor + addend modulo 2^32, in the unit of the multiplications.
__device__ inline int multiply_add(unsigned bits, int factor, int addend) {
  int sum;
  asm("mad.lo.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(bits), "r"(factor), "r"(addend));
  return sum;
}

#define VQ_WGMMA(TYPE)                                                                                         \
  VQ_HOPPER_ASM(                                                                                               \
      "{\n .reg .pred p;\n setp.ne.b32 p, %66, 0;\n"                                                           \
      " wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE " {"                                                \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                 \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                       \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                       \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"                         \
      "}, %64, %65, p, 1, 1, 0, 0;\n}"                                                                         \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),        \
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),  \
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]),             \
        "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),             \
        "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),             \
        "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),             \
        "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]),             \
        "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]),             \
        "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])                           \
      : "l"(kDescriptorTop | a), "l"(kDescriptorTop | b), "r"(add))

// d[64 x 128] (+)= a[64 x 16] b[128 x 16]^T by the four warps of a warpgroup; `add` 0 starts from zero. Thread t
// has rows t / 32 * 16 + t % 32 / 4 (+ 8) and columns 8 i + 2 (t % 4) + {0, 1} in d[4 i + {0, 1} (+ 2)].
template <typename T>
__device__ inline void multiply(float (&d)[64], uint32_t a, uint32_t b, int add);
template <>
__device__ inline void multiply<__half>(float (&d)[64], uint32_t a, uint32_t b, int add) {
  VQ_WGMMA("f16.f16");
}
template <>
__device__ inline void multiply<__nv_bfloat16>(float (&d)[64], uint32_t a, uint32_t b, int add) {
  VQ_WGMMA("bf16.bf16");
}
#undef VQ_WGMMA

}  // namespace vq_cuda

#endif
