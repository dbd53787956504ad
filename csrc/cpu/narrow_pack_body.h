// Rows and codes as narrow values, over V (one of simd_*.h), N and the order that narrow_products takes them in
// (arrange_rows, arrange_codes); all included before.
#pragma once

#include <float.h>
#include <math.h>

#include "cpu/narrow.h"
#include "cpu/row_lanes.h"

namespace vq_cpu {
namespace {

// A square below 2^-149 is lost: less than this in the norm of 2^18 values.
constexpr float kNarrowUnderflow = 0x1p-60f;

// A computed norm as an upper bound of it: its sum of squares has `dim` roundings, or half as many in the root.
inline float widened(float square, int64_t dim) {
  return sqrtf(square) * (1.0f + (float(dim) + 16.0f) * 0x1p-24f) + kNarrowUnderflow;
}
inline V::F widened(V::F square, int64_t dim) {
  return V::fma(V::sqrt(square), V::set(1.0f + (float(dim) + 16.0f) * 0x1p-24f), V::set(kNarrowUnderflow));
}

inline int64_t narrow_steps(int64_t dim) {
  constexpr int64_t kDims = N::UNIT * kStepsOfProduct;
  return (dim + kDims - 1) / kDims * kStepsOfProduct;
}

template <class T>
void narrow_pack_vector(const VqRows* x, int64_t first, int n, Centring centring, float* scratch, int base,
                        NarrowTile* t) {
  const int64_t dim = x->dim;
  // Two sums: each waits for itself alone.
  const float levels = N::levels(dim);
  V::F most = V::set(FLT_MIN * (levels + 1.0f)), square[2] = {V::set(0.0f), V::set(0.0f)};
  for_each_dimension<T>(x, first, n, centring, [&](int64_t d, V::F value) {
    V::store(scratch + d * V::W, value);
    most = V::max(magnitude(value), most);
    square[d & 1] = V::fma(value, value, square[d & 1]);
  });
  const V::F scale = V::mul(most, V::set(1.0f / levels));
  V::F lost = V::set(0.0f);
  const N::Scales scales(scale);
  const int64_t steps = narrow_steps(dim);
  for (int64_t step = 0, d = 0; step < steps; ++step, d += N::UNIT) {
    V::F value[N::UNIT];
#pragma GCC unroll 4
    for (int i = 0; i < N::UNIT; ++i) value[i] = d + i < dim ? V::load(scratch + (d + i) * V::W) : V::set(0.0f);
    V::store(t->rows + step * (V::W * V::VECTORS) + base, N::pack_row(value, scales, lost));
  }
  arrange_rows(t->rows + base, steps);
  const V::F norm = widened(V::add(square[0], square[1]), dim), zero = V::set(0.0f);
  const V::M good = V::gt(V::set(t->reach), norm);
  V::store(t->norm + base, V::select(good, norm, V::set(INFINITY)));
  // What rounding x - c took counts as lost too.
  V::store(t->lost + base, V::select(good, V::fma(V::set(0x1p-22f), norm, widened(lost, dim)), zero));
  V::store(t->scale + base, V::select(good, scale, zero));
}

void narrow_pack_rows(const VqRows* x, int64_t first, Centring centring, float* scratch, NarrowTile* t) {
  for (int base = 0; base < t->n; base += V::W) {
    if (x->dtype == VQ_BFLOAT16)
      narrow_pack_vector<Bf16>(x, first + base, t->n - base, centring, scratch, base, t);
    else if (x->dtype == VQ_FLOAT16)
      narrow_pack_vector<F16>(x, first + base, t->n - base, centring, scratch, base, t);
    else
      narrow_pack_vector<float>(x, first + base, t->n - base, centring, scratch, base, t);
  }
}

// Values d .. d + n - 1 of a code.
inline V::F centred_code(const float* code, Centring centring, int64_t d, int n) {
  const V::F zero = V::set(0.0f), c = centring.centre ? get(centring.centre + d, n) : zero;
  return V::fma(get(code + d, n), V::set(centring.scale), V::sub(zero, c));
}

void narrow_measure_codes(const float* codes, const uint8_t* usable, Centring centring, int64_t n, int64_t dim,
                          float* scale, float* square) {
  const float levels = N::levels(dim);
  for (int64_t j = 0; j < n; ++j) {
    scale[j] = 0.0f;
    square[j] = -1.0f;
    if (!usable[j]) continue;
    V::F most = V::set(FLT_MIN * (levels + 1.0f)), norm = V::set(0.0f);
    over_row(dim, [&](int64_t d, int w) {
      const V::F e = centred_code(codes + j * dim, centring, d, w);
      most = V::max(magnitude(e), most);
      norm = V::fma(e, e, norm);
    });
    scale[j] = V::greatest(most) / levels;
    square[j] = V::sum(norm);
  }
}

// One code into its column of a group.
void narrow_pack_code(const float* code, float square, Centring centring, int64_t dim, int c, const NarrowGroup* out) {
  typename N::CodeSums sums;
  const N::Scales scales(V::set(out->scale));
  over_row(dim, [&](int64_t d, int n) {
    int32_t words[V::W / N::UNIT];
    N::pack_code(centred_code(code, centring, d, n), scales, sums, words);
    const int64_t step = d / N::UNIT;
    for (int i = 0; i < (n + N::UNIT - 1) / N::UNIT; ++i) out->codes[(step + i) * V::PANEL + c] = words[i];
  });
  for (int64_t step = (dim + N::UNIT - 1) / N::UNIT; step < narrow_steps(dim); ++step)
    out->codes[step * V::PANEL + c] = 0;
  out->lost[c] = widened(V::sum(sums.lost), dim) + 0x1p-22f * widened(square, dim);
  out->kept[c] = widened(V::sum(sums.kept), dim);
  out->start[c] = N::start(sums);
}

void narrow_pack_codes(const float* codes, const float* square, Centring centring, int64_t dim,
                       const NarrowGroup* out) {
  const int64_t steps = narrow_steps(dim);
  for (int c = 0; c < V::PANEL; ++c) {
    if (c < out->n) {
      narrow_pack_code(codes + out->order[c] * dim, square[out->order[c]], centring, dim, c, out);
      continue;
    }
    for (int64_t step = 0; step < steps; ++step) out->codes[step * V::PANEL + c] = 0;
    out->start[c] = 0;
    out->lost[c] = out->kept[c] = 0.0f;
  }
  arrange_codes(out->codes, steps);
}

}  // namespace
}  // namespace vq_cpu
