// A stand-in for the CUDA headers with which the .cu files compile for the host.
//
// One thread block at a time runs as fibers, one per CUDA thread, that switch only at barriers and
// warp collectives: a missing barrier shows as a wrong result (in one of the two schedules), a barrier
// that not all threads reach as an error. Shared memory starts as NaN and has a guard behind it.
// The run-time part is in runtime.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

// NOLINTBEGIN: these are CUDA's names
#define __global__
#define __device__
#define __host__
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return uint4{x, y, z, w};
}

namespace cuda_host {

struct Position {
  dim3 thread, block, block_size, grid_size;
};
const Position& position();

constexpr int kWarpSize = 32;
constexpr int kExchangeBytes = 64;

// Barrier of the warp's lanes in `mask`; gives every lane the bytes that each lane brought.
using Exchange = unsigned char[kWarpSize][kExchangeBytes];
const Exchange& exchange(unsigned mask, const void* mine, size_t bytes, const char* what);
void block_barrier();
void group_barrier(unsigned threads);  // of the running thread's group of so many
void yield();  // lets the others go on
void grid_barrier();
unsigned char* dynamic_shared();
unsigned lane();
[[noreturn]] void fail(const char* message);

void queue_copy(void* to, const void* from, size_t bytes);
void commit_copies();
void finish_copies(int pending);

// Arithmetic of the running block in float32 multiply-adds; tensor cores count for a sixteenth.
extern int64_t* block_steps;

inline float counted_fmaf(float a, float b, float c) {
  ++*block_steps;
  return std::fmaf(a, b, c);
}

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  bool cooperative;
};
int run(const Launch& launch, const std::function<void()>& thread);

template <typename T>
T value_of(const Exchange& all, unsigned lane) {
  T v;
  std::memcpy(&v, all[lane], sizeof v);
  return v;
}

}  // namespace cuda_host

// Objects, not macros: gridDim and blockDim are members of the launch configuration too.
template <dim3 cuda_host::Position::* MEMBER>
struct CudaHostBuiltIn {
  struct {
    operator unsigned() const { return (::cuda_host::position().*MEMBER).x; }
  } x;
};
inline constexpr CudaHostBuiltIn<&cuda_host::Position::thread> threadIdx{};
inline constexpr CudaHostBuiltIn<&cuda_host::Position::block> blockIdx{};
inline constexpr CudaHostBuiltIn<&cuda_host::Position::block_size> blockDim{};
inline constexpr CudaHostBuiltIn<&cuda_host::Position::grid_size> gridDim{};

inline void __syncthreads() {
  ::cuda_host::block_barrier();
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  ::cuda_host::exchange(mask, nullptr, 0, "syncwarp");
}
inline void __threadfence() {}

template <typename T>
T __shfl_xor_sync(unsigned mask, T v, int lane_mask) {
  return ::cuda_host::value_of<T>(::cuda_host::exchange(mask, &v, sizeof v, "shfl"),
                                  ::cuda_host::lane() ^ static_cast<unsigned>(lane_mask));
}
template <typename T>
T __shfl_sync(unsigned mask, T v, int source) {
  return ::cuda_host::value_of<T>(::cuda_host::exchange(mask, &v, sizeof v, "shfl"),
                                  static_cast<unsigned>(source) % 32);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const auto& all = ::cuda_host::exchange(mask, &predicate, sizeof predicate, "ballot");
  unsigned votes = 0;
  for (unsigned i = 0; i < 32; ++i) {
    if ((mask >> i & 1) != 0 && ::cuda_host::value_of<int>(all, i) != 0) votes |= 1u << i;
  }
  return votes;
}
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}

template <typename T>
T atomicAdd(T* p, T v) {
  const T old = *p;
  *p = old + v;
  return old;
}
template <typename T>
T atomicMax(T* p, T v) {
  const T old = *p;
  *p = std::max(old, v);
  return old;
}
template <typename T>
T atomicMin(T* p, T v) {
  const T old = *p;
  *p = std::min(old, v);
  return old;
}
template <typename T>
T atomicCAS(T* p, T expected, T v) {
  const T old = *p;
  if (old == expected) *p = v;
  return old;
}
template <typename T>
T atomicOr(T* p, T v) {
  const T old = *p;
  *p = old | v;
  return old;
}

template <typename T>
T __ldcg(const T* p) {
  return *p;
}

inline unsigned __float_as_uint(float v) {
  unsigned bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
extern long long cuda_host_float64_products;
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __dsub_rn(double a, double b) {
  return a - b;
}
inline double __dmul_rn(double a, double b) {
  ++cuda_host_float64_products;  // the exact score alone takes products in float64
  return a * b;
}
inline int __popc(unsigned v) {
  return __builtin_popcount(v);
}
inline int __clzll(long long v) {
  return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v));
}
using std::max;
using std::min;
#define fmaf ::cuda_host::counted_fmaf

// --- the runtime's functions ---------------------------------------------------------------------------

enum cudaError_t : int { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
void cuda_host_count_launch();
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  cuda_host_count_launch();
  if (bytes != 0) std::memset(p, value, bytes);
  return cudaSuccess;
}

cudaError_t cuda_host_shared_limit(int bytes);
template <typename F>
cudaError_t cudaFuncSetAttribute(F*, cudaFuncAttribute, int value) {
  return cuda_host_shared_limit(value);
}
int cuda_host_resident_blocks(int threads, size_t shared_bytes);
template <typename F>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, F*, int threads, size_t shared_bytes) {
  *blocks = cuda_host_resident_blocks(threads, shared_bytes);
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> values(arguments...);
  const bool cooperative = config->numAttrs != 0 && config->attrs[0].val.cooperative != 0;
  const ::cuda_host::Launch launch{config->gridDim, config->blockDim, config->dynamicSmemBytes, cooperative};
  return static_cast<cudaError_t>(::cuda_host::run(launch, [&] { std::apply(kernel, values); }));
}
// NOLINTEND
