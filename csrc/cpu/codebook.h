// A codebook prepared once a call: float32, centred, packed into panels, with the constants of the bound.
#pragma once

#include "cpu/kernels.h"
#include "cpu/support.h"

struct Codebook {
  const float* codes = nullptr;  // [k, d], the values given
  int64_t k = 0, d = 0;
  bool l2 = true;
  int64_t panel_count = 0;
  Buffer<uint8_t> usable;  // [k]: finite, and no copy of an earlier code
  Buffer<float> centre;    // [d]
  Buffer<float> panels;    // [panel_count][d][panel]: codes - centre
  Buffer<float> bias;      // [panel_count * panel]
  double largest_norm = 0.0;  // of a packed code
  double largest_bias = 0.0;
  Buffer<double> squares_high, squares_low;  // [k], once need_squares() was called

  const float* row_centre() const { return l2 ? centre.get() : nullptr; }

  bool prepare(const VqCodes* given, int metric, const VqKernels* kernels, int threads);
  // Thread-safe.
  bool need_squares();

 private:
  Buffer<float> converted_;
  Buffer<uint64_t> hashes_;
  bool squares_tried_ = false;

  void find_usable(int threads);
  void find_centre(int threads);
  void pack(int panel, int threads);
  bool drop_copies();
};

// The codes as float32 [k, d]: themselves, or converted into `storage`; null if there is no memory.
const float* codes_as_float(const VqCodes* codes, const VqKernels* kernels, int threads, Buffer<float>& storage);

// How far a computed score can be from the real one, and when that could swap two codes: see bound() in
// codebook.cpp for the derivation.
struct Bound {
  float gamma, norm, bias, norm_offset, offset;

  // norm2: the computed sum of squares of the packed row. Infinite if a product or sum could overflow.
  float of_row(float norm2) const {
    const float products = (__builtin_sqrtf(norm2) + norm_offset) * norm + bias;
    return products < 1e37f ? gamma * products + offset : __builtin_inff();
  }
};

Bound bound(const Codebook& codebook);
