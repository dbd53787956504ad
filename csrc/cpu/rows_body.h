// Rows in and out of memory, and the work on one row, over V (one of simd_*.h, included before).
#pragma once

#include <float.h>
#include <math.h>
#include <string.h>

#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/row_lanes.h"

namespace vq_cpu {
namespace {

constexpr int ROWS_TILE = V::W * V::VECTORS;

template <class T>
void load_rows_as(const VqRows* x, int64_t first, int n, float* out) {
  const int64_t dim = x->dim, step = x->stride_dim;
  int i = 0;
  while (i < n) {
    const T* p = row_start<const T>(x, first + i);
    float* o = out + i * dim;
    int64_t d = 0;
    if (step == 1) {
      for (; d + V::W <= dim; d += V::W) V::store(o + d, V::load(p + d));
      if (d < dim) V::store_n(o + d, V::load_n(p + d, int(dim - d)), int(dim - d));
      ++i;
    } else if (lanes_are_adjacent(x, first + i, n - i)) {
      for (; d + V::W <= dim; d += V::W) {
        V::F square[V::W];
        for (int c = 0; c < V::W; ++c) square[c] = V::load(p + (d + c) * step);
        V::transpose(square);
        for (int r = 0; r < V::W; ++r) V::store(o + r * dim + d, square[r]);
      }
      for (; d < dim; ++d)
        for (int r = 0; r < V::W; ++r) o[r * dim + d] = to_float(p[d * step + r]);
      i += V::W;
    } else {
      for (; d < dim; ++d) o[d] = to_float(p[d * step]);
      ++i;
    }
  }
}

template <class T>
void store_rows_as(const VqRows* out, int64_t first, int n, const float* rows) {
  const int64_t dim = out->dim, step = out->stride_dim;
  int i = 0;
  while (i < n) {
    T* p = row_start<T>(out, first + i);
    const float* o = rows + i * dim;
    int64_t d = 0;
    if (step == 1) {
      for (; d + V::W <= dim; d += V::W) V::store(p + d, V::load(o + d));
      if (d < dim) V::store_n(p + d, V::load_n(o + d, int(dim - d)), int(dim - d));
      ++i;
    } else if (lanes_are_adjacent(out, first + i, n - i)) {
      for (; d + V::W <= dim; d += V::W) {
        V::F square[V::W];
        for (int r = 0; r < V::W; ++r) square[r] = V::load(o + r * dim + d);
        V::transpose(square);
        for (int c = 0; c < V::W; ++c) V::store(p + (d + c) * step, square[c]);
      }
      for (; d < dim; ++d)
        for (int r = 0; r < V::W; ++r) from_float(o[r * dim + d], p + d * step + r);
      i += V::W;
    } else {
      for (; d < dim; ++d) from_float(o[d], p + d * step);
      ++i;
    }
  }
}

template <class T>
void pack_tile_as(const VqRows* x, int64_t first, int n, Centring centring, float* packed, float* norm2) {
  for (int v = 0; v * V::W < n; ++v) {
    V::F sum = V::set(0.0f);
    for_each_dimension<T>(x, first + v * V::W, n - v * V::W, centring, [&](int64_t d, V::F value) {
      V::store(packed + d * ROWS_TILE + v * V::W, value);
      sum = V::fma(value, value, sum);
    });
    V::store(norm2 + v * V::W, sum);
  }
}

void load_rows(const VqRows* x, int64_t first, int n, float* out) {
  if (x->dtype == VQ_BFLOAT16) return load_rows_as<Bf16>(x, first, n, out);
  if (x->dtype == VQ_FLOAT16) return load_rows_as<F16>(x, first, n, out);
  load_rows_as<float>(x, first, n, out);
}

void store_rows(const VqRows* out, int64_t first, int n, const float* rows) {
  if (out->dtype == VQ_BFLOAT16) return store_rows_as<Bf16>(out, first, n, rows);
  if (out->dtype == VQ_FLOAT16) return store_rows_as<F16>(out, first, n, rows);
  store_rows_as<float>(out, first, n, rows);
}

void pack_tile(const VqRows* x, int64_t first, int n, Centring centring, float* packed, float* norm2) {
  if (x->dtype == VQ_BFLOAT16) return pack_tile_as<Bf16>(x, first, n, centring, packed, norm2);
  if (x->dtype == VQ_FLOAT16) return pack_tile_as<F16>(x, first, n, centring, packed, norm2);
  pack_tile_as<float>(x, first, n, centring, packed, norm2);
}

template <class T>
inline void copy_row(const T* from, int64_t dim, T* to) {
  constexpr int64_t kTogether = 16 / sizeof(T);
  int64_t d = 0;
  for (; d + kTogether <= dim; d += kTogether) memcpy(to + d, from + d, 16);
  for (; d < dim; ++d) to[d] = from[d];
}

// ROUNDED: codes in the dtype of rows are at hand.
template <bool ROUNDED, class T>
double quantize_rows_as(RowSpan x, const float* codes, const void* rounded, const int64_t* index, int n, int64_t dim,
                        RowSpan out) {
  double total = 0.0;
  for (int i = 0; i < n; ++i) {
    const T* from = static_cast<const T*>(x.data) + i * x.pitch;
    T* to = static_cast<T*>(out.data) + i * out.pitch;
    const float* e = codes + index[i] * dim;
    V::F error = V::set(0.0f);
    over_row(dim, [&](int64_t d, int w) {
      const V::F code = get(e + d, w);
      const V::F difference = V::sub(code, get(from + d, w));
      if (!ROUNDED) put(to + d, code, w);
      error = V::fma(difference, difference, error);
    });
    if (ROUNDED) copy_row(static_cast<const T*>(rounded) + index[i] * dim, dim, to);
    total += double(V::sum(error));
  }
  return total;
}

double quantize_rows(RowSpan x, const float* codes, const void* rounded, const int64_t* index, int n, int64_t dim,
                     RowSpan out) {
  return with_type(x.dtype, [&](auto* type) {
    typedef std::remove_pointer_t<decltype(type)> T;
    return (rounded ? quantize_rows_as<true, T> : quantize_rows_as<false, T>)(x, codes, rounded, index, n, dim, out);
  });
}

// DIFFERENCES: what is added is row - code. In float32: its rounding is relative to the difference.
template <bool DIFFERENCES, class T>
void add_rows_as(RowSpan rows, const float* codes, const int64_t* index, int n, int64_t dim, int64_t low,
                 int64_t high, double* sums) {
  for (int i = 0; i < n; ++i) {
    if (index[i] < low || index[i] >= high) continue;
    const T* x = static_cast<const T*>(rows.data) + i * rows.pitch;
    double* sum = sums + index[i] * dim;
    const float* e = DIFFERENCES ? codes + index[i] * dim : nullptr;
    over_row(dim, [&](int64_t d, int w) {
      const V::F value = DIFFERENCES ? V::sub(get(x + d, w), get(e + d, w)) : get(x + d, w);
      w == V::W ? V::add_to(sum + d, value) : V::add_to_n(sum + d, value, w);
    });
  }
}

void add_rows(RowSpan x, const float* codes, const int64_t* index, int n, int64_t dim, int64_t low, int64_t high,
              double* sums) {
  with_type(x.dtype, [&](auto* type) {
    typedef std::remove_pointer_t<decltype(type)> T;
    (codes ? add_rows_as<true, T> : add_rows_as<false, T>)(x, codes, index, n, dim, low, high, sums);
  });
}

// a + weight (b - a), written as torch.lerp writes it.
inline V::F lerp(V::F a, V::F b, float weight) {
  const V::F difference = V::sub(b, a);
  if (weight < 0.5f) return V::add(a, V::mul(V::set(weight), difference));
  return V::sub(b, V::mul(difference, V::set(1.0f - weight)));
}

// Whether a step would bring NaN or infinity into a finite average, or into its code.
bool ema_overflows(const float* average, const float* sum, int64_t dim, float one_minus_decay, float size,
                   int normalize) {
  V::F high = V::set(0.0f), low = high, nan = high;  // the last NaN where a value is NaN or infinite
  over_row(dim, [&](int64_t d, int w) {
    const V::F mean = lerp(get(average + d, w), get(sum + d, w), one_minus_decay);
    high = V::max(high, mean);
    low = V::min(low, mean);
    nan = V::add(nan, V::sub(mean, mean));
  });
  if (V::sum(nan) == 0.0f) {
    if (normalize) return false;
    float lanes[V::W], largest = 0.0f;
    V::store(lanes, V::max(high, V::sub(V::set(0.0f), low)));
    for (int i = 0; i < V::W; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
    if (largest / size <= FLT_MAX) return false;
  }
  for (int64_t d = 0; d < dim; ++d)
    if (!(fabsf(average[d]) <= FLT_MAX)) return false;
  return true;
}

// The code becomes the average over the smoothed size, or with `normalize` the average at unit length. An
// average that is too short to have a direction leaves the code as it is.
int ema_row(float* code, float* average, const float* sum, int64_t dim, float one_minus_decay, float size,
            int normalize) {
  // Before anything is written; the row is then read again from the nearest cache.
  if (ema_overflows(average, sum, dim, one_minus_decay, size, normalize)) return 0;
  V::F squares = V::set(0.0f);
  over_row(dim, [&](int64_t d, int w) {
    const V::F mean = lerp(get(average + d, w), get(sum + d, w), one_minus_decay);
    put(average + d, mean, w);
    if (normalize) {
      squares = V::fma(mean, mean, squares);
    } else {
      put(code + d, V::div(mean, V::set(size)), w);
    }
  });
  if (!normalize) return 1;
  const float total = V::sum(squares);
  if (total > 0x1p-80f && total < 0x1p120f) {
    const V::F length = V::set(sqrtf(total));
    over_row(dim, [&](int64_t d, int w) { put(code + d, V::div(get(average + d, w), length), w); });
    return 1;
  }
  double exact = 0.0;  // squares that float32 cannot hold
  for (int64_t d = 0; d < dim; ++d) exact += double(average[d]) * double(average[d]);
  const double length = sqrt(exact);
  for (int64_t d = 0; length >= 0x1p-100 && d < dim; ++d) code[d] = float(double(average[d]) / length);
  return 1;
}

}  // namespace
}  // namespace vq_cpu
