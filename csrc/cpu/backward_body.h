// The gradient of rows for x, over V (one of simd_*.h, included before).
#pragma once

#include <math.h>

#include "cpu/kernels.h"
#include "cpu/rows_body.h"

namespace vq_cpu {
namespace {

// Rows that are worked on together, a step after the other: enough for their roots and quotients not to wait for each
// other, few enough that rows come from memory as steadily as they do one by one.
inline int backward_rows_of_block(int64_t dim) {
  constexpr int64_t kValues = 256;
  const int64_t rows = kValues / dim;
  return int(rows < 2 ? 2 : rows < V::W ? rows : V::W);
}

// Up to W rows, of which those without a code have null in `code`.
template <class T>
struct BackwardRows {
  int n;
  const T *x[V::W], *g[V::W];  // g: null without a gradient of the quantized rows
  const float* code[V::W];
  T* out[V::W];
};

// The transpose of the rotation that takes u = x/|x| to q = e/|e|, scaled by |e|/|x|:
// ratio * (g - 2 (g.w) w + 2 (g.q) u) with w = (u + q) / |u + q| (arXiv:2410.06424, section 4.2).
class Rotations {
 public:
  template <class T>
  Rotations(const BackwardRows<T>& rows, int64_t dim) {
    float xx[V::W] = {}, ee[V::W] = {}, ww[V::W] = {}, gw[V::W] = {}, gq[V::W] = {};
    for (int r = 0; r < rows.n; ++r) {
      if (!rows.code[r]) continue;
      V::F of_x = V::set(0.0f), of_e = V::set(0.0f);
      over_row(dim, [&](int64_t d, int w) {
        const V::F x = get(rows.x[r] + d, w), e = get(rows.code[r] + d, w);
        of_x = V::fma(x, x, of_x);
        of_e = V::fma(e, e, of_e);
      });
      xx[r] = V::sum(of_x);
      ee[r] = V::sum(of_e);
    }
    const V::F x_length = at_least(1e-6f, V::sqrt(V::load(xx))), e_length = V::sqrt(V::load(ee));
    V::store(x_norm_, x_length);
    V::store(e_norm_, at_least(1e-6f, e_length));
    V::store(ratio_, V::div(e_length, x_length));
    for (int r = 0; r < rows.n; ++r) {
      if (!rows.code[r]) continue;
      V::F of_ww = V::set(0.0f), of_gw = V::set(0.0f), of_gq = V::set(0.0f);
      over_row(dim, [&](int64_t d, int w) {
        const V::F u = quotient(get(rows.x[r] + d, w), x_norm_[r]), q = quotient(get(rows.code[r] + d, w), e_norm_[r]);
        const V::F sum = V::add(u, q);
        const V::F gradient = get(rows.g[r] + d, w);
        of_ww = V::fma(sum, sum, of_ww);
        of_gw = V::fma(gradient, sum, of_gw);
        of_gq = V::fma(gradient, q, of_gq);
      });
      ww[r] = V::sum(of_ww);
      gw[r] = V::sum(of_gw);
      gq[r] = V::sum(of_gq);
    }
    const V::F w_norm = at_least(1e-6f, V::sqrt(V::load(ww)));
    V::store(through_w_, V::div(V::div(V::mul(V::set(-2.0f), V::load(gw)), w_norm), w_norm));
    V::store(through_u_, V::mul(V::set(2.0f), V::load(gq)));
  }

  V::F apply(int r, V::F g, V::F x, V::F e) const {
    const V::F u = quotient(x, x_norm_[r]), sum = V::add(u, quotient(e, e_norm_[r]));
    return V::mul(V::set(ratio_[r]), V::fma(V::set(through_u_[r]), u, V::fma(V::set(through_w_[r]), sum, g)));
  }

 private:
  // Not a product with a reciprocal: opposite x and e must give u + q = 0 where they can.
  static V::F quotient(V::F value, float norm) { return V::div(value, V::set(norm)); }
  // `least` where the value is no number.
  static V::F at_least(float least, V::F value) {
    return V::select(V::gt(value, V::set(least)), value, V::set(least));
  }

  float x_norm_[V::W], e_norm_[V::W], ratio_[V::W], through_w_[V::W], through_u_[V::W];
};

// out = gradient(r, g, x, e) of all rows that have a code, and of the loss, if there is one.
template <class T, class Gradient>
inline __attribute__((always_inline)) void backward_write(const BackwardRows<T>& rows, const float* loss, int64_t dim,
                                                          Gradient gradient) {
  const V::F strength = V::set(loss ? *loss : 0.0f);
  for (int r = 0; r < rows.n; ++r) {
    if (!rows.code[r]) continue;
    over_row(dim, [&](int64_t d, int w) {
      const V::F x = get(rows.x[r] + d, w), e = get(rows.code[r] + d, w);
      const V::F v = gradient(r, rows.g[r] ? get(rows.g[r] + d, w) : V::set(0.0f), x, e);
      put(rows.out[r] + d, loss ? V::fma(strength, V::sub(x, e), v) : v, w);
    });
  }
}

template <class T>
void backward_rows_as(RowSpan grad, const float* loss_grad, RowSpan rows, const float* codes, int64_t count,
                      const int64_t* index, int n, int64_t dim, int gradient, RowSpan grad_x) {
  const bool rotated = grad.data && gradient == VQ_ROTATION_TRICK;
  const int most = backward_rows_of_block(dim);
  for (int first = 0; first < n; first += most) {
    BackwardRows<T> block;
    block.n = n - first < most ? n - first : most;
    for (int r = 0; r < block.n; ++r) {
      const int64_t i = first + r;
      block.x[r] = static_cast<const T*>(rows.data) + i * rows.pitch;
      block.g[r] = grad.data ? static_cast<const T*>(grad.data) + i * grad.pitch : nullptr;
      block.code[r] = index[i] < 0 || index[i] >= count ? nullptr : codes + index[i] * dim;
      block.out[r] = static_cast<T*>(grad_x.data) + i * grad_x.pitch;
      if (block.code[r]) continue;
      const V::F value = V::set(index[i] == -1 ? 0.0f : NAN);
      over_row(dim, [&](int64_t d, int w) { put(block.out[r] + d, value, w); });
    }
    if (rotated) {
      const Rotations rotations(block, dim);
      backward_write(block, loss_grad, dim,
                     [&](int r, V::F g, V::F x, V::F e) { return rotations.apply(r, g, x, e); });
    } else {
      backward_write(block, loss_grad, dim, [](int, V::F g, V::F, V::F) { return g; });
    }
  }
}

void backward_rows(RowSpan grad, const float* loss_grad, RowSpan x, const float* codes, int64_t count,
                   const int64_t* index, int n, int64_t dim, int gradient, RowSpan out) {
  with_type(x.dtype, [&](auto* type) {
    backward_rows_as<std::remove_pointer_t<decltype(type)>>(grad, loss_grad, x, codes, count, index, n, dim, gradient,
                                                            out);
  });
}

}  // namespace
}  // namespace vq_cpu
