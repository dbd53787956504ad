// How fast are the units that a nearest-code search spends its time on beside the matrix unit?
//
// For each instruction of its epilogue: lanes a multiprocessor serves in a clock, with every multiprocessor
// busy, and the clock meanwhile. The counts are taken inside the kernel (clock64), so they do not depend on
// what the clock does. Last, bytes a clock from L2. One JSON object a line.
//
//   nvcc -gencode=arch=compute_90a,code=sm_90a -O3 -std=c++17 -o rates rates.cu && ./rates
//
// An instruction's operands are neighbours in a ring of registers, and kinds alternate: of repeated equal
// ones the assembler would make fewer (any two LOP3 of three inputs are one). tests/benchmarks/test_rates.py
// looks into the machine code.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr int kThreads = 1024;  // of a block; one block a multiprocessor, 8 warps a scheduler
constexpr int kRing = 8;        // independent instructions in a row
constexpr int kUnroll = 32;     // of a loop's body: 256 instructions, so that its end costs 1%
constexpr int kChunks = 1024;   // of the L2 buffer, 16 KiB each: each half of the cache can hold a copy

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
    std::exit(1);
  }
}

// The registers hold integers; mov.b32 between kinds costs no instruction.
#define BINARY(name, a, b) asm volatile(name " %0, %0, %1;" : "+r"(a) : "r"(b))
#define FLOAT_BINARY(name, a, b) \
  asm volatile("{.reg .f32 x, y; mov.b32 x, %0; mov.b32 y, %1; " name " x, x, y; mov.b32 %0, x;}" : "+r"(a) : "r"(b))

// One instruction of each unit on the pair (a, b); odd is known when the body is unrolled.
struct Fadd {
  static constexpr const char* kName = "FADD";
  __device__ static void apply(uint32_t& a, uint32_t b, uint32_t, bool) {
    FLOAT_BINARY("add.f32", a, b);
  }
};
struct Ffma {
  static constexpr const char* kName = "FFMA";
  __device__ static void apply(uint32_t& a, uint32_t b, uint32_t c, bool) {
    asm volatile(
        "{.reg .f32 x, y, z; mov.b32 x, %0; mov.b32 y, %1; mov.b32 z, %2; fma.rn.f32 x, x, z, y; mov.b32 %0, x;}"
        : "+r"(a)
        : "r"(b), "r"(c));
  }
};
struct Fmnmx {
  static constexpr const char* kName = "FMNMX";
  __device__ static void apply(uint32_t& a, uint32_t b, uint32_t, bool odd) {
    if (odd) {
      FLOAT_BINARY("max.f32", a, b);
    } else {
      FLOAT_BINARY("min.f32", a, b);
    }
  }
};
struct Vimnmx {
  static constexpr const char* kName = "VIMNMX";
  __device__ static void apply(uint32_t& a, uint32_t b, uint32_t, bool odd) {
    if (odd) {
      BINARY("max.s32", a, b);
    } else {
      BINARY("min.s32", a, b);
    }
  }
};
struct Vimnmx3 {
  static constexpr const char* kName = "VIMNMX3";
  __device__ static void apply(uint32_t& a, uint32_t b, uint32_t c, bool odd) {
    if (odd) {
      asm volatile("{.reg .s32 t; max.s32 t, %0, %1; max.s32 %0, t, %2;}" : "+r"(a) : "r"(b), "r"(c));
    } else {
      asm volatile("{.reg .s32 t; min.s32 t, %0, %1; min.s32 %0, t, %2;}" : "+r"(a) : "r"(b), "r"(c));
    }
  }
};
struct Lop3 {
  static constexpr const char* kName = "LOP3";
  __device__ static void apply(uint32_t& a, uint32_t b, uint32_t c, bool) {
    asm volatile("lop3.b32 %0, %0, %1, %2, 0x6a;" : "+r"(a) : "r"(c), "r"(b));  // (a & c) ^ b
  }
};
struct Sel {
  static constexpr const char* kName = "SEL";
  __device__ static void apply(uint32_t& a, uint32_t b, uint32_t c, bool odd) {
    if (odd) {
      asm volatile("{.reg .pred p; setp.gt.s32 p, %2, 3; selp.b32 %0, %0, %1, p;}" : "+r"(a) : "r"(b), "r"(c));
    } else {
      asm volatile("{.reg .pred p; setp.gt.s32 p, %2, 5; selp.b32 %0, %1, %0, p;}" : "+r"(a) : "r"(b), "r"(c));
    }
  }
};
struct F2fp {
  static constexpr const char* kName = "F2FP";
  __device__ static void apply(uint32_t& a, uint32_t b, uint32_t, bool) {
    asm volatile("{.reg .f32 x, y; mov.b32 x, %0; mov.b32 y, %1; cvt.rn.f16x2.f32 %0, x, y;}" : "+r"(a) : "r"(b));
  }
};

__device__ uint64_t nanoseconds() {
  uint64_t time;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
  return time;
}

// Writes for each block the clocks and the nanoseconds that `rounds` bodies took.
template <class Unit>
__global__ void __launch_bounds__(kThreads) run_unit(int rounds, uint32_t seed, uint32_t* sink, uint64_t* times) {
  uint32_t ring[kRing];
  for (int i = 0; i < kRing; ++i) ring[i] = seed * (threadIdx.x + i + 1);
  __syncthreads();
  const uint64_t start_ns = nanoseconds();
  const int64_t start = clock64();
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int step = 0; step < kUnroll; ++step) {
#pragma unroll
      for (int i = 0; i < kRing; ++i) Unit::apply(ring[i], ring[(i + 1) % kRing], seed, step % 2 != 0);
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    times[2 * blockIdx.x] = clock64() - start;
    times[2 * blockIdx.x + 1] = nanoseconds() - start_ns;
  }
  uint32_t all = 0;
  for (int i = 0; i < kRing; ++i) all ^= ring[i];
  sink[blockIdx.x * kThreads + threadIdx.x] = all;
}

// Every block reads the whole buffer, from another place on, past L1.
__global__ void __launch_bounds__(kThreads) read_l2(const uint4* buffer, int rounds, uint32_t* sink, uint64_t* times) {
  uint32_t all = 0;
  __syncthreads();
  const uint64_t start_ns = nanoseconds();
  const int64_t start = clock64();
  for (int round = 0; round < rounds; ++round) {
#pragma unroll 4
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int from = (chunk + static_cast<int>(blockIdx.x) * 31) % kChunks;
      uint4 value;
      asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                   : "l"(buffer + static_cast<int64_t>(from) * kThreads + threadIdx.x));
      all ^= value.x ^ value.y ^ value.z ^ value.w;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    times[2 * blockIdx.x] = clock64() - start;
    times[2 * blockIdx.x + 1] = nanoseconds() - start_ns;
  }
  sink[blockIdx.x * kThreads + threadIdx.x] = all;
}

struct Times {
  double clocks;
  double nanoseconds;
};

Times median(const std::vector<uint64_t>& times) {
  std::vector<uint64_t> clocks, ns;
  for (size_t i = 0; i < times.size(); i += 2) {
    clocks.push_back(times[i]);
    ns.push_back(times[i + 1]);
  }
  std::nth_element(clocks.begin(), clocks.begin() + clocks.size() / 2, clocks.end());
  std::nth_element(ns.begin(), ns.begin() + ns.size() / 2, ns.end());
  return {static_cast<double>(clocks[clocks.size() / 2]), static_cast<double>(ns[ns.size() / 2])};
}

struct Device {
  int blocks;
  uint32_t* sink;
  uint64_t* times;

  // Launches twice, the first time to warm up, and returns the medians over the multiprocessors.
  template <class Launch>
  Times measure(Launch launch, const char* what) const {
    for (int repeat = 0; repeat < 2; ++repeat) {
      launch();
      check(cudaGetLastError(), what);
      check(cudaDeviceSynchronize(), what);
    }
    std::vector<uint64_t> host(2 * blocks);
    check(cudaMemcpy(host.data(), times, host.size() * sizeof(uint64_t), cudaMemcpyDeviceToHost), what);
    return median(host);
  }
};

template <class Unit>
void report(const Device& device) {
  constexpr int kRounds = 1000;  // 1 to 10 ms
  const Times t = device.measure(
      [&] { run_unit<Unit><<<device.blocks, kThreads>>>(kRounds, 0x3f9u, device.sink, device.times); }, Unit::kName);
  const double lanes = static_cast<double>(kThreads) * kRing * kUnroll * kRounds;
  std::printf("{\"unit\": \"%s\", \"lanes_per_clock\": %.2f, \"clock_mhz\": %.0f}\n", Unit::kName, lanes / t.clocks,
              1e3 * t.clocks / t.nanoseconds);
}

void report_l2(const Device& device) {
  constexpr int kRounds = 8;
  uint4* buffer = nullptr;
  const size_t bytes = size_t{kChunks} * kThreads * sizeof(uint4);
  check(cudaMalloc(&buffer, bytes), "L2");
  check(cudaMemset(buffer, 0x5a, bytes), "L2");
  const Times t = device.measure(
      [&] { read_l2<<<device.blocks, kThreads>>>(buffer, kRounds, device.sink, device.times); }, "L2");
  const double read = static_cast<double>(bytes) * kRounds;
  std::printf("{\"unit\": \"L2 read\", \"bytes_per_clock\": %.2f, \"clock_mhz\": %.0f, \"bytes_per_second\": %.4g}\n",
              read / t.clocks, 1e3 * t.clocks / t.nanoseconds, device.blocks * read / t.nanoseconds * 1e9);
  check(cudaFree(buffer), "L2");
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "no device");
  Device device{properties.multiProcessorCount, nullptr, nullptr};
  check(cudaMalloc(&device.sink, sizeof(uint32_t) * kThreads * device.blocks), "memory");
  check(cudaMalloc(&device.times, sizeof(uint64_t) * 2 * device.blocks), "memory");
  report<Fadd>(device);
  report<Ffma>(device);
  report<Fmnmx>(device);
  report<Vimnmx>(device);
  report<Vimnmx3>(device);
  report<Lop3>(device);
  report<Sel>(device);
  report<F2fp>(device);
  report_l2(device);
  return 0;
}
