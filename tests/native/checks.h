// What the parts of the kernels' test share: counts of what was wrong, tensors of any dtype and layout, the truth.
#pragma once

#include <math.h>
#include <stdio.h>
#include <string.h>

#include <string>
#include <vector>

#include "cpu/dtype.h"
#include "cpu/vq_cpu.h"

namespace {

using vq_cpu::Bf16;
using vq_cpu::F16;
using vq_cpu::from_float;
using vq_cpu::to_float;

int checks = 0, failures = 0;
std::string where;

void expect(bool good, const char* what, int64_t at) {
  ++checks;
  if (good) return;
  if (++failures <= 20) printf("%s: %s wrong at %lld\n", where.c_str(), what, (long long)at);
}

bool same_bits(float a, float b) { return memcmp(&a, &b, 4) == 0 || (a != a && b != b); }

// Equal but for the rounding of a few operations.
bool close(double a, double b, double tolerance) {
  return (a != a && b != b) || fabs(a - b) <= tolerance * (1.0 + fabs(b));
}

enum Layout { kRows, kOddSlice, kMaps };

// Values as float32 that the dtype holds, and a view of their memory in a layout.
struct Tensor {
  std::vector<float> values;  // [n][dim], contiguous
  std::vector<uint8_t> memory;
  VqRows view;

  Tensor(std::vector<float> given, int64_t n, int64_t dim, int dtype, Layout layout) : values(given) {
    const int64_t size = dtype == VQ_FLOAT32 ? 4 : 2;
    view = {nullptr, 1, n, dim, n * dim, dim, 1, dtype};
    if (layout == kOddSlice) view.stride_row = dim + 3;
    if (layout == kMaps && n % 2 == 0) {  // two batches of channel-first maps
      view.batches = 2;
      view.rows = n / 2;
      view.stride_batch = dim * view.rows;
      view.stride_row = 1;
      view.stride_dim = view.rows;
    }
    memory.assign(size_t((n + 1) * (dim + 3) * size), 0);
    view.data = memory.data() + (layout == kOddSlice ? size : 0);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t d = 0; d < dim; ++d) write(i, d, values[i * dim + d]);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t d = 0; d < dim; ++d) values[i * dim + d] = read(i, d);
  }

  int64_t offset(int64_t i, int64_t d) const {
    return (i / view.rows) * view.stride_batch + (i % view.rows) * view.stride_row + d * view.stride_dim;
  }
  float read(int64_t i, int64_t d) const {
    const int64_t at = offset(i, d);
    if (view.dtype == VQ_BFLOAT16) return to_float(static_cast<Bf16*>(view.data)[at]);
    if (view.dtype == VQ_FLOAT16) return to_float(static_cast<F16*>(view.data)[at]);
    return static_cast<float*>(view.data)[at];
  }
  void write(int64_t i, int64_t d, float v) {
    const int64_t at = offset(i, d);
    if (view.dtype == VQ_BFLOAT16) return from_float(v, static_cast<Bf16*>(view.data) + at);
    if (view.dtype == VQ_FLOAT16) return from_float(v, static_cast<F16*>(view.data) + at);
    static_cast<float*>(view.data)[at] = v;
  }
};

bool all_finite(const float* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    if (!isfinite(values[i])) return false;
  return true;
}

struct Score {
  double value, rest;
};

Score exact_score(const float* x, const float* e, int64_t dim, bool l2) {
  double high = 0.0, low = 0.0;
  const auto add = [&](double term) {
    const double s = high + term, b = s - high;
    low += (high - (s - b)) + (term - b);
    high = s;
  };
  for (int64_t d = 0; d < dim && l2; ++d) add(0.5 * double(e[d]) * double(e[d]));
  for (int64_t d = 0; d < dim; ++d) add(-double(x[d]) * double(e[d]));
  const double v = high + low, b = v - high;
  return {v, (high - (v - b)) + (low - b)};
}

int64_t nearest(const float* x, const std::vector<float>& codes, int64_t k, int64_t dim, bool l2) {
  int64_t best = -1;
  Score least = {};
  if (!all_finite(x, dim)) return 0;
  for (int64_t j = 0; j < k; ++j) {
    const float* e = codes.data() + j * dim;
    if (!all_finite(e, dim)) continue;
    const Score s = exact_score(x, e, dim, l2);
    if (best < 0 || s.value < least.value || (s.value == least.value && s.rest < least.rest)) {
      best = j;
      least = s;
    }
  }
  return best < 0 ? 0 : best;
}

}  // namespace
