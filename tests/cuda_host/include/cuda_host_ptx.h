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
inline float tensor_core_sum(float c, const double* products, int count) {
  double largest = std::fabs(static_cast<double>(c));
  bool finite = std::isfinite(c);
  double plain = c;
  for (int i = 0; i < count; ++i) {
    largest = std::max(largest, std::fabs(products[i]));
    finite = finite && std::isfinite(products[i]);
    plain += products[i];
  }
  if (!finite || largest == 0.0) return static_cast<float>(plain);
  const int scale = 23 - std::max(std::ilogb(largest), -126);
  double sum = std::trunc(std::ldexp(static_cast<double>(c), scale));
  for (int i = 0; i < count; ++i) sum += std::trunc(std::ldexp(products[i], scale));
  if (sum == 0.0) return 0.0f;
  const int excess = std::max(std::ilogb(sum) - 23, 0);
  return static_cast<float>(std::ldexp(std::trunc(std::ldexp(sum, -excess)), excess - scale));
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
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
    double products[16];
    for (unsigned k = 0; k < 16; ++k) {
      const auto x = ::cuda_host::value_of<MmaOperands>(all, row % 8 * 4 + k % 8 / 2);
      const auto y = ::cuda_host::value_of<MmaOperands>(all, column * 4 + k % 8 / 2);
      products[k] = half(x.a[row / 8 + 2 * (k / 8)], k % 2) * half(y.b[k / 8], k % 2);
    }
    const int block = cuda_host_tensor_core_block;
    for (int k = 0; k < 16; k += block) c[i] = tensor_core_sum(c[i], products + k, block);
  }
}

}  // namespace vq_cuda
