// The gradient of rows for x, over V (one of simd_*.h, included before).
#pragma once

#include <math.h>

#include "cpu/kernels.h"
#include "cpu/rows_body.h"

namespace vq_cpu {
namespace {

// The transpose of the rotation that takes u = x/|x| to q = e/|e|, scaled by |e|/|x|:
// ratio * (g - 2 (g.w) w + 2 (g.q) u) with w = (u + q) / |u + q| (arXiv:2410.06424, section 4.2).
struct Rotation {
  V::F ratio, x_norm, e_norm, through_w, through_u;

  template <class T>
  Rotation(const T* g, const T* x, const float* e, int64_t dim) {
    V::F xx = V::set(0.0f), ee = V::set(0.0f);
    over_row(dim, [&](int64_t d, int w) {
      const V::F a = get(x + d, w), b = get(e + d, w);
      xx = V::fma(a, a, xx);
      ee = V::fma(b, b, ee);
    });
    const float x_length = fmaxf(sqrtf(V::sum(xx)), 1e-6f), e_length = sqrtf(V::sum(ee));
    x_norm = V::set(x_length);
    e_norm = V::set(fmaxf(e_length, 1e-6f));
    V::F ww = V::set(0.0f), gw = V::set(0.0f), gq = V::set(0.0f);
    over_row(dim, [&](int64_t d, int w) {
      const V::F q = V::div(get(e + d, w), e_norm);
      const V::F sum = V::add(V::div(get(x + d, w), x_norm), q);
      const V::F gradient = get(g + d, w);
      ww = V::fma(sum, sum, ww);
      gw = V::fma(gradient, sum, gw);
      gq = V::fma(gradient, q, gq);
    });
    const float w_norm = fmaxf(sqrtf(V::sum(ww)), 1e-6f);
    ratio = V::set(e_length / x_length);
    through_w = V::set(-2.0f * V::sum(gw) / w_norm / w_norm);
    through_u = V::set(2.0f * V::sum(gq));
  }

  V::F apply(V::F g, V::F x, V::F e) const {
    // Divisions, not products with a reciprocal: opposite x and e must give u + q = 0 where they can.
    const V::F u = V::div(x, x_norm);
    const V::F sum = V::add(u, V::div(e, e_norm));
    return V::mul(ratio, V::fma(through_u, u, V::fma(through_w, sum, g)));
  }
};

template <class T>
void backward_rows_as(RowSpan grad, const float* loss_grad, RowSpan rows, const float* codes, int64_t count,
                      const int64_t* index, int n, int64_t dim, int gradient, RowSpan grad_x) {
  const bool has_loss = loss_grad != nullptr;
  const V::F strength = V::set(has_loss ? *loss_grad : 0.0f);
  for (int i = 0; i < n; ++i) {
    const T* x = static_cast<const T*>(rows.data) + i * rows.pitch;
    const T* g = grad.data ? static_cast<const T*>(grad.data) + i * grad.pitch : nullptr;
    T* out = static_cast<T*>(grad_x.data) + i * grad_x.pitch;
    if (index[i] < 0 || index[i] >= count) {
      const V::F value = V::set(index[i] == -1 ? 0.0f : NAN);
      over_row(dim, [&](int64_t d, int w) { put(out + d, value, w); });
      continue;
    }
    const float* e = codes + index[i] * dim;
    if (g && gradient == VQ_ROTATION_TRICK) {
      const Rotation rotation(g, x, e, dim);
      over_row(dim, [&](int64_t d, int w) {
        const V::F a = get(x + d, w), b = get(e + d, w);
        V::F v = rotation.apply(get(g + d, w), a, b);
        if (has_loss) v = V::fma(strength, V::sub(a, b), v);
        put(out + d, v, w);
      });
    } else {
      over_row(dim, [&](int64_t d, int w) {
        V::F v = g ? get(g + d, w) : V::set(0.0f);
        if (has_loss) v = V::fma(strength, V::sub(get(x + d, w), get(e + d, w)), v);
        put(out + d, v, w);
      });
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
