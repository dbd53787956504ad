// Host definitions of the instruction wrappers of csrc/cuda/ptx.cuh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern int cuda_host_tensor_core_block;  // products that a tensor core adds at a time: 16, 8, 4 or 2

namespace vq_cuda {

inline unsigned char* dynamic_shared() {
  return ::cuda_host::dynamic_shared();
}
inline void grid_barrier() {
  ::cuda_host::grid_barrier();
}

// Copies arrive as late as the waits allow, so that a missing wait reads what was there before.
inline void copy_async16(void* shared, const void* global) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    ::cuda_host::fail("cp.async of a misaligned address");
  }
  ::cuda_host::queue_copy(shared, global, 16);
}
inline void copy_async_commit() {
  ::cuda_host::commit_copies();
}
template <int PENDING>
void copy_async_wait() {
  ::cuda_host::finish_copies(PENDING);
}

inline void load_matrix_x4(uint32_t (&r)[4], const void* shared) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0) ::cuda_host::fail("ldmatrix of a misaligned address");
  const auto& all = ::cuda_host::exchange(0xffffffffu, &shared, sizeof shared, "ldmatrix");
  const unsigned lane = ::cuda_host::lane();
  for (unsigned i = 0; i < 4; ++i) {
    const auto* row = ::cuda_host::value_of<const unsigned char*>(all, 8 * i + lane / 4);
    std::memcpy(&r[i], row + lane % 4 * 4, 4);
  }
}

// Vectors of the compiler's own: an instruction each with AVX2, several elsewhere. Products are taken four at a time.
typedef float FloatFour __attribute__((vector_size(16)));
typedef int32_t IntFour __attribute__((vector_size(16)));
typedef int32_t IntEight __attribute__((vector_size(32)));
typedef double Four __attribute__((vector_size(32)));

inline Four doubles(const float* low, const float* high) {  // of two numbers each
  FloatFour v;
  std::memcpy(&v, low, 8);
  std::memcpy(reinterpret_cast<unsigned char*>(&v) + 8, high, 8);
  return __builtin_convertvector(v, Four);
}

inline double host_power_of_two(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
inline int host_high_bits(double v) {  // without the sign
  uint64_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return static_cast<int>(bits >> 32 & 0x7fffffff);
}

// The tensor cores' arithmetic at its worst: products aligned to the largest term and cut off there,
// the sum cut off to 24 bits (Fasi et al. 2021; newer cores keep a few bits more), so many at a time.
//
// Much of the time of the tests goes here: powers of two by their bits, exact as ldexp is in this range (values
// are floats or products of two, normal numbers of float64 or zero), and integers for numbers of 24 bits cut off.
// Of COUNT products; where they do not fill a vector, the others in it are zero.
template <int COUNT>
float tensor_core_sum(float c, const Four* products) {
  const IntEight magnitude = {0, 0x7fffffff, 0, 0x7fffffff, 0, 0x7fffffff, 0, 0x7fffffff};
  IntEight most = {};  // in every other: the high bits of the largest of some products
#pragma GCC unroll 4
  for (int i = 0; i < (COUNT + 3) / 4; ++i) {
    const IntEight bits = reinterpret_cast<IntEight>(products[i]) & magnitude;
    most = bits > most ? bits : most;
  }
  const int high = std::max(std::max(std::max(most[1], most[3]), std::max(most[5], most[7])), host_high_bits(c));
  const int largest = high >> 20;
  if (largest == 2047 || largest == 0) {  // a term is not finite, or all are zero
    double plain = c;
    for (int i = 0; i < COUNT; ++i) plain += products[i / 4][i % 4];
    return static_cast<float>(plain);
  }
  const int scale = 23 - std::max(largest - 1023, -126);
  const double unit = host_power_of_two(scale);
  IntFour sums = {};
#pragma GCC unroll 4
  for (int i = 0; i < (COUNT + 3) / 4; ++i) sums += __builtin_convertvector(products[i] * unit, IntFour);
  // 17 terms below 2^24
  const double sum = static_cast<int>(static_cast<double>(c) * unit) + sums[0] + sums[1] + sums[2] + sums[3];
  uint64_t bits;
  std::memcpy(&bits, &sum, sizeof bits);
  bits &= ~0x1fffffffull;  // 24 bits are left
  double cut;
  std::memcpy(&cut, &bits, sizeof cut);
  return static_cast<float>(cut * host_power_of_two(-scale));
}
// The sum of 16 products and `c`.
inline float tensor_core_sum_16(float c, const Four (&x)[4], const Four (&y)[4]) {
  const Four products[4] = {x[0] * y[0], x[1] * y[1], x[2] * y[2], x[3] * y[3]};
  switch (cuda_host_tensor_core_block) {
    case 16:
      return tensor_core_sum<16>(c, products);
    case 8:
      return tensor_core_sum<8>(tensor_core_sum<8>(c, products), products + 2);
    case 4:
      for (const Four& four : products) c = tensor_core_sum<4>(c, &four);
      return c;
    case 2:
      for (const Four& four : products) {
        const Four pairs[2] = {{four[0], four[1]}, {four[2], four[3]}};
        c = tensor_core_sum<2>(tensor_core_sum<2>(c, pairs), pairs + 1);
      }
      return c;
  }
  ::cuda_host::fail("tensor cores that add another number of products than 16, 8, 4 or 2");
}

inline float part_value(__half v) {
  return __half2float(v);
}
inline float part_value(__nv_bfloat16 v) {
  return __bfloat162float(v);
}

template <typename T>
void multiply_16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  *::cuda_host::block_steps += 16 * 8 * 16 / 16 / 32;
  // What the lane holds of two rows and a column: pairs k and k + 8 of each.
  float mine[3][4];
  const uint32_t pairs[3][2] = {{a[0], a[2]}, {a[1], a[3]}, {b0, b1}};
#pragma GCC unroll 3
  for (unsigned i = 0; i < 3; ++i) {
#pragma GCC unroll 4
    for (unsigned k = 0; k < 4; ++k) {
      mine[i][k] = part_value(T{static_cast<uint16_t>(pairs[i][k / 2] >> 16 * (k % 2))});
    }
  }
  const auto& all = ::cuda_host::exchange(0xffffffffu, mine, sizeof mine, "mma");
  const unsigned lane = ::cuda_host::lane();
  const auto sixteen = [&](unsigned first_lane, unsigned i, Four (&v)[4]) {
    const auto of = [&](unsigned j) { return reinterpret_cast<const float*>(all[first_lane + j]) + 4 * i; };
#pragma GCC unroll 4
    for (unsigned j = 0; j < 4; ++j) v[j] = doubles(of(j % 2 * 2) + j / 2 * 2, of(j % 2 * 2 + 1) + j / 2 * 2);
  };
  Four x[2][4], y[2][4];  // the lane's two rows and two columns
  for (unsigned i = 0; i < 2; ++i) {
    sixteen(lane / 4 * 4, i, x[i]);
    sixteen((lane % 4 * 2 + i) * 4, 2, y[i]);
  }
  for (unsigned i = 0; i < 4; ++i) c[i] = tensor_core_sum_16(c[i], x[i / 2], y[i % 2]);
}

}  // namespace vq_cuda
