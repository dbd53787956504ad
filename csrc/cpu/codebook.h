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
  double centre_norm = 0.0;

  // For float32 sweeps, once need_panels() was called
  Buffer<float> panels;  // [panel_count][d][panel]: codes - centre
  Buffer<float> bias;    // [panel_count * panel]
  double largest_norm = 0.0;  // of a packed code
  double largest_bias = 0.0;

  // For the matrix unit
  int64_t tile_steps = 0, tile_blocks = 0;
  Buffer<uint16_t> tile_codes;
  Buffer<float> tile_bias;        // [tile_blocks * VQ_TILE_CODES]
  float tile_norm2 = 0.0f;        // the largest of a code
  float tile_error2 = 0.0f;       // of what rounding to bfloat16 took
  float tile_largest_bias = 0.0f;

  // For the exact scan, once need_squares() was called
  Buffer<double> squares_high, squares_low;  // [k]

  const float* row_centre() const { return l2 ? centre.get() : nullptr; }

  // False if there is no memory. With tiles the panels are left out.
  bool prepare(const VqCodes* given, int metric, const VqKernels* kernels, const VqTileKernels* tiles,
               int threads);
  // Thread-safe.
  bool need_panels(const VqKernels* kernels);
  bool need_squares();

 private:
  Buffer<float> converted_;
  Buffer<uint64_t> hashes_;

  void find_usable(const VqKernels* kernels, int threads);
  bool find_centre(const VqKernels* kernels, int threads);
  bool pack(const VqKernels* kernels, int threads);
  bool pack_tiles(const VqTileKernels* tiles, int threads);
  bool drop_copies();
};

// The codes as float32 [k, d]: themselves, or converted into `storage`; null if there is no memory.
const float* codes_as_float(const VqCodes* codes, const VqKernels* kernels, int threads, Buffer<float>& storage);

// How far a computed score can be from the real one, and when that could swap two codes: see bound() in
// codebook.cpp for the derivation.
struct Bound {
  float gamma, norm, bias, error, norm_offset, offset;
  float contract, far;  // of the contract's own score, see contract_error()

  // norm2: the computed sum of squares of the packed row; error2: of what rounding it took, if it was
  // rounded. Infinite if a product or sum could overflow.
  float of_row(float norm2, float error2 = 0.0f) const {
    const float length = __builtin_sqrtf(norm2) + norm_offset, lost = __builtin_sqrtf(error2);
    const float products = length * norm + bias;
    if (!(products < 1e37f)) return __builtin_inff();
    const float all = length + far;
    return gamma * products + (lost + norm_offset) * norm + (length + lost) * error + offset +
           contract * all * all;
  }
};

// Of a float32 sweep, of the matrix unit, and of VqTileKernels::score.
Bound bound(const Codebook& codebook);
Bound tile_bound(const Codebook& codebook);
double score_bound(const Codebook& codebook, float norm2);
// Of VqKernels::score_rows.
double float64_bound(int64_t d, double x_norm, double e_norm);
