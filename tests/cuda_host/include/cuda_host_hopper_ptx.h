// Host definitions of the instruction wrappers of csrc/cuda/hopper_ptx.cuh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_host_ptx.h>

namespace vq_cuda {

// Addresses of shared memory count from the block's own beginning.
inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - ::cuda_host::dynamic_shared());
}

// The phase's parity, arrivals that it misses, arrivals of every phase, and bytes still expected, in 16 bits each
// but the last.
struct HostBarrier {
  uint8_t parity, all, missing, ready;
  int32_t bytes;
};
static_assert(sizeof(HostBarrier) == sizeof(uint64_t), "a barrier is 8 bytes");

inline void complete_phase(HostBarrier* b) {
  if (b->missing != 0 || b->bytes != 0) return;
  b->parity ^= 1;
  b->missing = b->all;
}
inline HostBarrier* host_barrier(uint64_t* barrier) {
  auto* b = reinterpret_cast<HostBarrier*>(barrier);
  if (b->ready != 0x5a) ::cuda_host::fail("a barrier that was not initialised");
  return b;
}
inline void barrier_init(uint64_t* barrier, int arrivals) {
  const auto count = static_cast<uint8_t>(arrivals);
  *reinterpret_cast<HostBarrier*>(barrier) = HostBarrier{0, count, count, 0x5a, 0};
}
inline void barrier_init_fence() {}
inline void barrier_arrive(uint64_t* barrier) {
  HostBarrier* b = host_barrier(barrier);
  --b->missing;
  complete_phase(b);
}
inline void barrier_expect(uint64_t* barrier, int bytes) {
  HostBarrier* b = host_barrier(barrier);
  b->bytes += bytes;
  --b->missing;
  complete_phase(b);
}
inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  const HostBarrier* b = host_barrier(barrier);
  for (int turns = 0; b->parity == parity; ++turns) {
    if (turns > 1000000) ::cuda_host::fail("a barrier that nobody completes");
    ::cuda_host::yield();
  }
}
inline void copy_bulk(void* shared, const void* global, int bytes, uint64_t* barrier) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0 || bytes % 16 != 0) {
    ::cuda_host::fail("bulk copy of a misaligned address or size");
  }
  HostBarrier* b = host_barrier(barrier);
  std::memcpy(shared, global, static_cast<size_t>(bytes));
  b->bytes -= bytes;
  complete_phase(b);
}
inline void warpgroup_barrier(int) {
  ::cuda_host::group_barrier(128);
}
inline void fence_matrix_reads() {}
inline void multiply_fence() {}
inline void multiply_commit() {}
template <int PENDING>
void multiply_wait() {}

inline uint32_t matrix_descriptor(uint32_t address) {
  return address;
}

template <int COUNT>
void give_registers() {}
template <int COUNT>
void take_registers() {}

inline int multiply_add(unsigned bits, int factor, int addend) {
  return static_cast<int>(bits * static_cast<unsigned>(factor) + static_cast<unsigned>(addend));
}
inline uint32_t advance(uint32_t descriptor, int bytes) {
  return descriptor + static_cast<uint32_t>(bytes);
}

template <typename T>
void multiply(float (&d)[64], uint32_t a, uint32_t b, int add) {
  *::cuda_host::block_steps += 64 * 128 * 16 / 16 / 128;
  const unsigned char* shared = ::cuda_host::dynamic_shared();
  const unsigned t = threadIdx.x % 128;
  const auto sixteen = [&](uint64_t at, unsigned row, Four (&v)[4]) {
#pragma GCC unroll 2
    for (unsigned k = 0; k < 16; k += 8) {
      T parts[8];
      std::memcpy(parts, shared + at + row / 8 * 256 + k / 8 * 128 + row % 8 * 16, sizeof parts);
      float values[8];
#pragma GCC unroll 8
      for (unsigned i = 0; i < 8; ++i) values[i] = part_value(parts[i]);
      v[k / 4] = doubles(values, values + 2);
      v[k / 4 + 1] = doubles(values + 4, values + 6);
    }
  };
  Four x[2][4];
  for (unsigned r = 0; r < 2; ++r) sixteen(a, t / 32 * 16 + t % 32 / 4 + 8 * r, x[r]);
  for (unsigned j = 0; j < 32; ++j) {
    Four y[4];
    sixteen(b, j / 2 * 8 + t % 4 * 2 + j % 2, y);
    for (unsigned r = 0; r < 2; ++r) {
      const unsigned i = j / 2 * 4 + 2 * r + j % 2;
      d[i] = tensor_core_sum_16(add != 0 ? d[i] : 0.0f, x[r], y);
    }
  }
}

}  // namespace vq_cuda
