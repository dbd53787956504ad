// What a core can do at best, over V (one of simd_*.h, included before): products in registers and nothing else.
#pragma once

#include "cpu/kernels.h"

namespace vq_cpu {
namespace {

// As many sums as the tile of a sweep, which the registers hold and which keep every pipe busy.
constexpr int PEAK_SUMS = V::VECTORS * V::PANEL;

// Hides from the compiler what is in a register, and keeps it there.
#if defined(__x86_64__)
#define VQ_OPAQUE(v) asm volatile("" : "+v"(v))
#elif defined(__aarch64__)
#define VQ_OPAQUE(v) asm volatile("" : "+w"(v))
#else
#define VQ_OPAQUE(v) asm volatile("" : "+m"(v))
#endif

// rounds times PEAK_SUMS of `multiply_add`.
template <class T, class MultiplyAdd>
int64_t peak_of(int64_t rounds, T zero, MultiplyAdd multiply_add) {
  T a = zero, b = zero, sum[PEAK_SUMS];
  VQ_OPAQUE(a);
  VQ_OPAQUE(b);
#pragma GCC unroll 32
  for (int i = 0; i < PEAK_SUMS; ++i) sum[i] = zero;
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
    for (int i = 0; i < PEAK_SUMS; ++i) {
      sum[i] = multiply_add(sum[i], a, b);
      VQ_OPAQUE(sum[i]);
      VQ_OPAQUE(a);  // or a product that is an instruction of its own would be taken once
    }
  }
  return rounds * PEAK_SUMS;
}

#undef VQ_OPAQUE

}  // namespace
}  // namespace vq_cpu
