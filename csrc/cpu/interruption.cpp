#include "cpu/interruption.h"

#include <chrono>

namespace vq_cpu {
namespace {

// Between questions to the caller, who may have to wait for a lock to answer.
constexpr int64_t kMilliseconds = 150;

int (*stop_requested)(void) = nullptr;

int64_t milliseconds() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(time).count();
}

}  // namespace

Interruption::Interruption() : next_(milliseconds() + kMilliseconds) {}

bool Interruption::look() {
  const int64_t now = milliseconds();
  if (now < next_) return false;
  next_ = now + kMilliseconds;
  if (stop_requested && stop_requested()) stopped_.store(true, std::memory_order_relaxed);
  return happened();
}

}  // namespace vq_cpu

extern "C" void vq_cpu_on_stop_requested(int (*requested)(void)) { vq_cpu::stop_requested = requested; }
