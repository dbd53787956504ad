// A call that takes long may be asked to end before it is done, as by Ctrl-C: its drivers ask between pieces
// of work, stop, and leave results that their caller drops.
#pragma once

#include <omp.h>
#include <stdint.h>

#include <atomic>

#include "cpu/vq_cpu.h"

namespace vq_cpu {

// One for each call, shared by its threads.
class Interruption {
 public:
  Interruption();
  // Whether the call is to end. Every thread of a team asks; the calling thread, the team's first, passes the
  // question on where enough time has gone by.
  bool requested() { return happened() || (omp_get_thread_num() == 0 && look()); }
  bool happened() const { return stopped_.load(std::memory_order_relaxed); }
  // The VqStatus of a call: `done`, or not for want of memory unless it was interrupted.
  int status(bool done) const {
    return happened() ? VQ_INTERRUPTED : done ? VQ_OK : VQ_OUT_OF_MEMORY;
  }

 private:
  bool look();

  alignas(64) std::atomic<bool> stopped_{false};
  alignas(64) int64_t next_;  // the calling thread's own: milliseconds of a clock
};

// How one thread asks between pieces of work that are smaller than the question.
class Watch {
 public:
  // null: never interrupted.
  explicit Watch(Interruption* interruption) : interruption_(interruption) {}
  // Whether to stop, after a piece of `work` (elements touched); once true it stays so.
  bool stop(int64_t work) {
    work_ += work;
    if (work_ < kWorkBetweenQuestions) return stopped_;
    work_ = 0;
    stopped_ = interruption_ && interruption_->requested();
    return stopped_;
  }

 private:
  static constexpr int64_t kWorkBetweenQuestions = 1 << 16;  // tens of microseconds

  Interruption* interruption_;
  int64_t work_ = 0;
  bool stopped_ = false;
};

}  // namespace vq_cpu
