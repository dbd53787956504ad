// Rows along the lanes of V (one of simd_*.h, included before): what all packing shares.
#pragma once

#include "cpu/kernels.h"

namespace vq_cpu {
namespace {

template <class T>
inline T* row_start(const VqRows* x, int64_t row) {
  return static_cast<T*>(x->data) + (row / x->rows) * x->stride_batch + (row % x->rows) * x->stride_row;
}

// Rows row .. row + W - 1 exist, lie in one b, and neighbours are adjacent in memory.
inline bool lanes_are_adjacent(const VqRows* x, int64_t row, int n) {
  return n >= V::W && x->stride_row == 1 && row / x->rows == (row + V::W - 1) / x->rows;
}

// n of the W values at p, 0 beyond.
template <class T>
inline V::F get(const T* p, int n) {
  return n == V::W ? V::load(p) : V::load_n(p, n);
}
template <class T>
inline void put(T* p, V::F v, int n) {
  n == V::W ? V::store(p, v) : V::store_n(p, v, n);
}

// step(d, n) for every vector of a row, n < W in the last one only.
template <class Step>
inline __attribute__((always_inline)) void over_row(int64_t dim, Step step) {
  int64_t d = 0;
  for (; d + V::W <= dim; d += V::W) step(d, V::W);
  if (d < dim) step(d, int(dim - d));
}

// A vector of values minus the centre's value for dimension d.
inline V::F centre_lanes(V::F v, Centring centring, int64_t d) {
  const V::F scale = V::set(centring.scale);
  return centring.centre ? V::fma(v, scale, V::set(-centring.centre[d])) : V::mul(v, scale);
}

// take(d, values) for every dimension of one vector of rows, centred, in ascending order; lanes beyond n repeat the
// last row.
template <class T, class Take>
inline void for_each_dimension(const VqRows* x, int64_t first, int n, Centring centring, Take take) {
  const int64_t dim = x->dim, step = x->stride_dim;
  if (lanes_are_adjacent(x, first, n)) {
    const T* p = row_start<const T>(x, first);
    for (int64_t d = 0; d < dim; ++d) take(d, centre_lanes(V::load(p + d * step), centring, d));
    return;
  }
  const T* p[V::W];
  int64_t batch = first / x->rows, row = first % x->rows;
  for (int r = 0; r < V::W; ++r) {
    p[r] = static_cast<const T*>(x->data) + batch * x->stride_batch + row * x->stride_row;
    if (r + 1 < n && ++row == x->rows) {
      row = 0;
      ++batch;
    }
  }
  int64_t d = 0;
  if constexpr (sizeof(T) == 2) {
    // Two neighbours move as one word: half as many squares.
    for (; step == 1 && d + 2 * V::W <= dim; d += 2 * V::W) {
      V::F square[V::W];
      for (int r = 0; r < V::W; ++r) square[r] = V::load_words(p[r] + d);
      V::transpose(square);
      for (int c = 0; c < V::W; ++c) {
        V::F even, odd;
        V::split(square[c], even, odd, p[0]);
        take(d + 2 * c, centre_lanes(even, centring, d + 2 * c));
        take(d + 2 * c + 1, centre_lanes(odd, centring, d + 2 * c + 1));
      }
    }
  }
  for (; d < dim; d += V::W) {
    const int width = dim - d < V::W ? int(dim - d) : V::W;
    V::F square[V::W];
    if (step == 1 && width == V::W) {
      for (int r = 0; r < V::W; ++r) square[r] = V::load(p[r] + d);
    } else if (step == 1) {
      for (int r = 0; r < V::W; ++r) square[r] = V::load_n(p[r] + d, width);
    } else {
      float part[V::W][V::W] = {};
      for (int r = 0; r < V::W; ++r)
        for (int c = 0; c < width; ++c) part[r][c] = to_float(p[r][(d + c) * step]);
      for (int r = 0; r < V::W; ++r) square[r] = V::load(part[r]);
    }
    V::transpose(square);
    for (int c = 0; c < width; ++c) take(d + c, centre_lanes(square[c], centring, d + c));
  }
}

}  // namespace
}  // namespace vq_cpu
