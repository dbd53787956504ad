// A codebook prepared once a call: float32, centred, packed into panels, with the norms that bounds need.
#pragma once

#include "cpu/first_pass.h"
#include "cpu/fixed_point.h"
#include "cpu/regions.h"
#include "cpu/support.h"

namespace vq_cpu {

constexpr int kFlatParts = 3;

struct Codebook {
  const float* codes = nullptr;  // [count, dim], the values given
  int64_t count = 0, dim = 0;
  bool l2 = true;
  int64_t panel_count = 0;
  Buffer<uint8_t> usable;  // [count]: finite, and no copy of an earlier code
  Buffer<float> centre;    // [dim]
  double centre_norm = 0.0;
  double typical_norm = 0.0;  // of a code minus the centre: the median of a sample

  // Of codes for float32 sweeps and the matrix unit: scaled where products could be lost
  Centring centring = {1.0f, nullptr};
  const float* scaled = nullptr;  // [count, dim]: scale * codes, once ensure_scaled() was called

  // For float32 sweeps, once ensure_panels() was called
  Buffer<float> panels;  // [panel_count][dim][panel]
  Buffer<float> bias;    // [panel_count * panel]
  double largest_norm = 0.0;  // of a packed code
  double largest_bias = 0.0;

  // For the matrix unit
  int64_t matrix_steps = 0, matrix_blocks = 0;
  Buffer<uint16_t> matrix_codes;
  Buffer<float> matrix_bias;        // [matrix_blocks * kMatrixCodes]
  float matrix_norm2 = 0.0f;        // the largest of a code
  float matrix_error2 = 0.0f;       // of what rounding to bfloat16 took
  float matrix_largest_bias = 0.0f;

  // For float64, once ensure_lengths() was called
  Buffer<double> half_squares, lengths;  // [count]: |e|^2 / 2 and |e|, in any order of summation
  // For rows of one value throughout, once ensure_flat() was called: the sum of a code's values in float64, as three floats.
  // Not where a sum is beyond the range of floats.
  Buffer<float> flat;  // [count][kFlatParts]
  bool has_flat = false;
  // For the exact scan, once ensure_squares() was called
  Buffer<double> squares_high, squares_low;  // [count], l2
  FixedCodes fixed;                          // once asked for
  CodeRegions regions;                       // once asked for

  // Of rows: for cosine nothing is subtracted, as x.c is the same for all codes.
  Centring row_centring() const { return {centring.scale, l2 ? centring.centre : nullptr}; }

  // False if there is no memory or it was interrupted. Panels are left out unless the first
  // pass is a float32 sweep.
  bool prepare(const VqCodes* given, int metric, const Kernels* kernels, const FirstPass& first, int threads,
               Interruption* interruption);
  // The panels, of which a float32 sweep begins. False as prepare.
  bool pack(const Kernels* kernels, int threads, Interruption* interruption);
  // Thread-safe. False if there is no memory.
  bool ensure_panels(const Kernels* kernels);
  bool ensure_lengths(const Kernels* kernels);
  bool ensure_squares();
  bool ensure_scaled();
  bool ensure_flat();

 private:
  Buffer<float> converted_;
  Buffer<float> scaled_centre_, scaled_codes_;
  Buffer<uint64_t> hashes_;
  bool has_lengths_ = false, has_squares_ = false;

  bool find_usable(const Kernels* kernels, int threads, Interruption* interruption);
  bool find_centre(const Kernels* kernels, int threads, Interruption* interruption);
  // Of the codes with task_of >= 0.
  bool find_mean(const Kernels* kernels, const int64_t* task_of, int threads, Interruption* interruption);
  bool pack_matrix(const MatrixKernels* matrix, int threads, Interruption* interruption);
  bool drop_copies();
  bool choose_centring();
};

// The power of two that brings a length to 1 to 2; of 0: 1.
float unit_scale(double length);

// The codes as float32 [count, dim]: themselves, or converted into `storage`; null if there is no memory or
// it was interrupted.
const float* codes_as_float(const VqCodes* codes, const Kernels* kernels, int threads,
                            Interruption* interruption, Buffer<float>& storage);

}  // namespace vq_cpu
