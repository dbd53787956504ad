// Host definitions of the instruction wrappers of csrc/cuda/ptx.cuh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern int cuda_host_tensor_core_block;  // products that a tensor core adds at a time: 16 or a divisor

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

struct MmaOperands {
  uint32_t a[4], b[2];
};

// The tensor cores' arithmetic at its worst: products aligned to the largest term and cut off there,
// the sum cut off to 24 bits (Fasi et al. 2021; newer cores keep a few bits more), so many at a time.
//
// Most of the time of the tests goes here: powers of two by their bits, exact as ldexp is in this range (values
// are floats or products of two), and integers for numbers of 24 bits cut off.
inline int host_exponent_of(double normal) {
  uint64_t bits;
  std::memcpy(&bits, &normal, sizeof bits);
  return static_cast<int>(bits >> 52 & 2047) - 1023;
}
inline double host_power_of_two(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
inline float tensor_core_sum(float c, const double* products, int count) {
  double largest = std::fabs(static_cast<double>(c));
  double plain = c;  // not finite if a term is not
  for (int i = 0; i < count; ++i) {
    largest = std::max(largest, std::fabs(products[i]));
    plain += products[i];
  }
  if (!std::isfinite(plain) || largest == 0.0) return static_cast<float>(plain);
  const int scale = 23 - std::max(host_exponent_of(largest), -126);
  const double unit = host_power_of_two(scale);
  int sum = static_cast<int>(static_cast<double>(c) * unit);  // 17 terms below 2^24
  for (int i = 0; i < count; ++i) sum += static_cast<int>(products[i] * unit);
  if (sum == 0) return 0.0f;
  const int excess = std::max(host_exponent_of(sum) - 23, 0);
  return static_cast<float>(sum / (1 << excess) * host_power_of_two(excess - scale));
}

inline double part_value(__half v) {
  return __half2float(v);
}
inline double part_value(__nv_bfloat16 v) {
  return __bfloat162float(v);
}

template <typename T>
void multiply_16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  *::cuda_host::block_steps += 16 * 8 * 16 / 16 / 32;
  const MmaOperands mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto& all = ::cuda_host::exchange(0xffffffffu, &mine, sizeof mine, "mma");
  const unsigned lane = ::cuda_host::lane();
  const auto half = [](uint32_t pair, unsigned i) {
    return part_value(T{static_cast<uint16_t>(pair >> 16 * i)});
  };
  double x[2][16], y[2][16];  // the lane's two rows and two columns
  for (unsigned k = 0; k < 16; ++k) {
    const auto row = ::cuda_host::value_of<MmaOperands>(all, lane / 4 * 4 + k % 8 / 2);
    for (unsigned i = 0; i < 2; ++i) {
      x[i][k] = half(row.a[i + 2 * (k / 8)], k % 2);
      const auto column = ::cuda_host::value_of<MmaOperands>(all, (lane % 4 * 2 + i) * 4 + k % 8 / 2);
      y[i][k] = half(column.b[k / 8], k % 2);
    }
  }
  for (unsigned i = 0; i < 4; ++i) {
    double products[16];
    for (unsigned k = 0; k < 16; ++k) products[k] = x[i / 2][k] * y[i % 2][k];
    const int block = cuda_host_tensor_core_block;
    for (int k = 0; k < 16; k += block) c[i] = tensor_core_sum(c[i], products + k, block);
  }
}

}  // namespace vq_cuda
