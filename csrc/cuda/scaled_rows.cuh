// Rows on their way to the tensor cores: centred, scaled by a power of two, split into one or two 16-bit parts, and
// measured; and the bound on the error of their scores. The same as vq_kernels/backends/triton/rows.py computes, whose
// passes go on with rows of hopper_search.cu; docs/certificate.md derives the bound.
#pragma once

#include "common.cuh"

namespace vq_cuda {

constexpr int kRowLanes = 8;  // that share a row, where its numbers lie together
constexpr int kOctet = 8;  // numbers that a lane takes at a time, 16 bytes of a part
constexpr float kExcluded = 0x1p100f;  // the bias of a code that is not in the product: it never wins

// Of all usable codes, in the scaled units of the codes that are stored.
struct Extremes {
  float largest = 0.0f, smallest = kInfinity;  // norms
  float residual = 0.0f;  // |code - stored parts| / |code|
  float low_part = 0.0f;  // |low part| / |code|
  float excluded = kInfinity;  // smallest norm of a finite code that is out of the parts' range
  float centre = 0.0f;  // s |c|, at most 2^126
  int exponent = 0;  // log2 s
};

// Of every score, relative to |z||e|: the sums of the products of first parts, and of those with a second part.
struct ScaledBound {
  bool split;  // float16 of scaled rows, else the rows' own 16 bits
  bool l2;
  float main, minor, contract, slack, scale;
};

struct RowSource {
  const void* data;
  RowMap map;
  int dim, dtype;
  bool vectors;  // rows can be read 16 bytes at a time
  bool centred;
  const float* centre;  // [dim]
};

inline RowSource row_source(const VqRows& x, bool centred, const float* centre) {
  const int64_t vector = x.dtype == VQ_FLOAT32 ? 4 : 8;
  RowSource source{x.data, row_map(x), static_cast<int>(x.dim), x.dtype, false, centred, centre};
  source.vectors = x.stride_dim == 1 && x.stride_row % vector == 0 &&
                   (x.batches == 1 || x.stride_batch % vector == 0) && reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
  return source;
}

__device__ inline int exponent_of(float v) {
  return static_cast<int>(__float_as_uint(v) >> 23) - 127;
}
__device__ inline float power_of_two(int e) {
  return __uint_as_float(static_cast<unsigned>(e + 127) << 23);
}

// Eight numbers of a row from d on, zero beyond its end.
__device__ inline void load_octet(const RowSource& x, int64_t offset, int d, float (&v)[kOctet]) {
  if (x.vectors && d + kOctet <= x.dim) {
    if (x.dtype == VQ_FLOAT32) {
      const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(x.data) + offset + d);
      const float4 p = from[0], q = from[1];
      v[0] = p.x, v[1] = p.y, v[2] = p.z, v[3] = p.w, v[4] = q.x, v[5] = q.y, v[6] = q.z, v[7] = q.w;
      return;
    }
    const uint4 p = *reinterpret_cast<const uint4*>(static_cast<const __half*>(x.data) + offset + d);
    const uint32_t words[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
    for (int i = 0; i < kOctet; ++i) {
      const uint16_t bits = static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2));
      v[i] = x.dtype == VQ_BFLOAT16 ? __uint_as_float(static_cast<uint32_t>(bits) << 16)
                                    : to_float(*reinterpret_cast<const __half*>(&bits));
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    const int64_t at = offset + (d + i) * x.map.strides.dim;
    v[i] = 0.0f;
    if (d + i >= x.dim) continue;
    v[i] = x.dtype == VQ_FLOAT32    ? static_cast<const float*>(x.data)[at]
           : x.dtype == VQ_BFLOAT16 ? to_float(static_cast<const __nv_bfloat16*>(x.data)[at])
                                    : to_float(static_cast<const __half*>(x.data)[at]);
  }
}

// Entry d of a row as it is searched, before scaling.
__device__ inline float centred(const RowSource& x, int d, float v) {
  return d < x.dim && x.centred ? v - x.centre[d] : v;
}

// Sums and maxima over a row, and the powers of two that come of them.
template <int PARTS>
struct RowMeasures {
  float widest = 0.0f, largest = 0.0f;  // centred and as it is, finite entries alone; `largest` of this lane's
  bool nonfinite = false;
  float squares = 0.0f, missed = 0.0f, low_squares = 0.0f;  // of the scaled row, of what its parts miss, of the second

  __device__ void look(float v, float z) {
    if (!is_finite(z)) {
      nonfinite = true;
      return;
    }
    widest = fmaxf(widest, fabsf(z));
    largest = fmaxf(largest, fabsf(v));
  }
  __device__ void look(const RowSource& x, int d, const float (&v)[kOctet]) {
#pragma unroll
    for (int i = 0; i < kOctet; ++i) look(v[i], centred(x, d + i, v[i]));
  }
  template <int LANES = kRowLanes>
  __device__ void join_lanes() {
    for (int step = LANES / 2; step > 0; step /= 2) {
      widest = fmaxf(widest, __shfl_xor_sync(kAllLanes, widest, step));
      nonfinite = __shfl_xor_sync(kAllLanes, static_cast<int>(nonfinite), step) != 0 || nonfinite;
    }
  }
  template <int LANES = kRowLanes>
  __device__ void join_sums() {
    for (int step = LANES / 2; step > 0; step /= 2) {
      squares += __shfl_xor_sync(kAllLanes, squares, step);
      missed += __shfl_xor_sync(kAllLanes, missed, step);
      if (PARTS == 2) low_squares += __shfl_xor_sync(kAllLanes, low_squares, step);
    }
  }
};

struct RowPowers {
  float row, score;
  bool in_range;
};

__device__ inline RowPowers row_powers(const ScaledBound& b, const Extremes& e, float widest) {
  if (!b.split) return RowPowers{1.0f, 1.0f, widest < 0x1p50f && (widest > 0x1p-40f || widest == 0.0f)};
  const int row = min(13 - exponent_of(widest), e.exponent + 15), relative = row - e.exponent;
  return RowPowers{power_of_two(row), power_of_two(max(relative, -40)), widest < 0x1p100f && relative >= -40};
}

// Rounds an octet to one part, stores it, and measures what was lost.
template <typename T>
__device__ inline void store_octet(const RowSource& x, int d, const float (&v)[kOctet], float factor, bool zero,
                                   unsigned char* to, RowMeasures<1>* m) {
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    const bool inside = d + i < x.dim;
    const float z = inside && x.centred ? v[i] - x.centre[d + i] : v[i];
    const float scaled = zero ? 0.0f : z * factor;
    const T rounded = from_float<T>(scaled);
    const float rest = scaled - to_float(rounded);
    m->squares = fmaf(scaled, scaled, m->squares);
    m->missed = fmaf(rest, rest, m->missed);
    words[i / 2] |= static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(&rounded)) << 16 * (i % 2);
  }
  *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// The same for two parts: what the first one misses is stored in the second.
template <typename T>
__device__ inline void store_octet(const RowSource& x, int d, const float (&v)[kOctet], float factor, bool zero,
                                   unsigned char* to, unsigned char* low_to, RowMeasures<2>* m) {
  float rest[kOctet];
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    const float scaled = zero ? 0.0f : centred(x, d + i, v[i]) * factor;
    const T rounded = from_float<T>(scaled);
    rest[i] = scaled - to_float(rounded);
    m->squares = fmaf(scaled, scaled, m->squares);
    words[i / 2] |= static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(&rounded)) << 16 * (i % 2);
  }
  *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    const T low = from_float<T>(rest[i]);
    const float low_value = to_float(low), missed = rest[i] - low_value;
    m->low_squares = fmaf(low_value, low_value, m->low_squares);
    m->missed = fmaf(missed, missed, m->missed);
    words[i / 2] = (i % 2 == 0 ? 0u : words[i / 2]) |
                   static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(&low)) << 16 * (i % 2);
  }
  *reinterpret_cast<uint4*>(low_to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// Upper bound on |computed - exact| of every score of a row that could win, infinite where none is known, and in
// `shift` what makes the row's scores positive: rows.py:error_bound.
template <int PARTS, int CODE_PARTS>
__device__ inline float scaled_error(const ScaledBound& b, const Extremes& e, bool rows_are_centred,
                                     const RowMeasures<PARTS>& m, float score_scale, float* shift) {
  const float row_norm = sqrtf(m.squares), missed = sqrtf(m.missed), low_norm = sqrtf(m.low_squares);
  const float offset = rows_are_centred || !b.l2 ? 0.0f : e.centre;
  float norm = e.largest, bias = 0.0f;
  bool known = e.excluded == kInfinity;
  const float reach = row_norm / score_scale + offset;
  if (b.l2) {
    const float seen = e.centre * 0x1p-30f;
    norm = fminf(e.largest, fmaxf(4.0f * reach + 2.0f * e.smallest, seen));
    known = e.excluded > fmaxf(2.0f * reach + e.smallest, seen) * b.slack;
    bias = score_scale * (0.5f * norm + offset) * norm;
  }
  const float residual = CODE_PARTS == 2 ? e.residual : e.residual + e.low_part;
  const float low_part = CODE_PARTS == 2 ? e.low_part : 0.0f;
  const float rounding = 0x1p-23f + (rows_are_centred ? 0x1p-24f : 0.0f);
  float error = row_norm * norm * (b.main + residual + rounding) + norm * missed + bias * 0x1p-23f;
  if (CODE_PARTS == 2) error += row_norm * norm * (b.minor * low_part);
  if (PARTS == 2) error += norm * (low_norm * (low_part + b.minor));
  const float span = row_norm / score_scale + norm + 2.0f * e.centre;
  error += (b.contract * span) * (score_scale * span);
  *shift = 1.01f * reach * e.largest + 0x1p-100f;
  known = known && residual < 0x1p-5f && low_part < 0x1p-5f && *shift < 0x1p80f;
  return known ? b.scale * (error * b.slack * b.slack + 0x1p-100f) : kInfinity;
}

}  // namespace vq_cuda
