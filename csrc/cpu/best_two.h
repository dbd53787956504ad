// The best of a row's scores, and the second best, which says how far ahead it is.
#pragma once

#include <math.h>
#include <stdint.h>

namespace vq_cpu {

// Of scores to be maximised; a tie keeps the earlier one.
template <class T>
struct BestTwo {
  T best = -INFINITY, second = -INFINITY;
  int64_t index = 0;

  void offer(T score, int64_t j) {
    if (score > best) {
      second = best;
      best = score;
      index = j;
    } else if (score > second) {
      second = score;
    }
  }
  // The same for others, whose indices may be anywhere among these.
  void merge(const BestTwo& other) {
    offer(other.best, other.index);
    if (other.second > second) second = other.second;
  }
};

}  // namespace vq_cpu
