// Memory, the floating point environment and the number of threads for the drivers.
#pragma once

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>

#include "cpu/interruption.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace vq_cpu {

// Uninitialised memory on cache lines of its own.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { free(data_); }

  // False if there is no memory. Earlier contents are lost.
  bool resize(int64_t n) {
    free(data_);
    const size_t bytes = (size_t(n) * sizeof(T) + 127) / 64 * 64;
    data_ = static_cast<T*>(aligned_alloc(64, bytes));
    return data_ != nullptr;
  }
  T* get() const { return data_; }
  operator T*() const { return data_; }

 private:
  T* data_ = nullptr;
};

enum class Subnormals { kept, zero };

// Sets this thread's vector unit to round to nearest, whatever the caller has set (torch.set_flush_denormal),
// until the end of the scope.
template <Subnormals SUBNORMALS>
class Rounding {
#if defined(__SSE__)
 public:
  Rounding() : saved_(_mm_getcsr()) { _mm_setcsr(SUBNORMALS == Subnormals::zero ? 0x9fc0 : 0x1f80); }
  ~Rounding() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
 public:
  Rounding() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    set(SUBNORMALS == Subnormals::zero ? uint64_t(1) << 24 : 0);
  }
  ~Rounding() { set(saved_); }

 private:
  static void set(uint64_t word) { __asm__ volatile("msr fpcr, %0" ::"r"(word) : "memory"); }
  uint64_t saved_;
#endif
};

using DefaultRounding = Rounding<Subnormals::kept>;
using FlushSubnormals = Rounding<Subnormals::zero>;

// Waking a thread costs some microseconds: no more threads than `work` (elements touched or products)
// pays for.
inline int threads_for(int threads, int64_t work) {
  const int64_t useful = 1 + work / 131072;
  return int(threads < 1 ? 1 : useful < threads ? useful : threads);
}

// work(t) for every task of about `task_work`, in any order, on up to `threads` threads. False if it was
// interrupted; null: it cannot be.
template <class Work>
bool parallel_for(int threads, int64_t tasks, Interruption* interruption, int64_t task_work, Work work) {
  const int team = int(tasks < threads ? (tasks < 1 ? 1 : tasks) : threads);
#pragma omp parallel num_threads(team) if (team > 1)
  {
    const DefaultRounding rounding;
    Watch watch(interruption);
#pragma omp for schedule(dynamic)
    for (int64_t t = 0; t < tasks; ++t)
      if (!watch.stop(task_work)) work(t);
  }
  return !interruption || !interruption->happened();
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace vq_cpu
