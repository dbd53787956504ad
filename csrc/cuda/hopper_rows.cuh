// Rows of a block of the Hopper search on their way into shared memory: centred, scaled by a power of two,
// rounded to the matrix unit's 16 bits, and what is known of each before any product. The same as
// vq_kernels/backends/triton/rows.py computes, whose other passes go on with these rows.
#pragma once

#include "common.cuh"
#include "hopper_ptx.cuh"

namespace vq_cuda {

constexpr int kHopperTile = 128;  // codes of a tile
constexpr int kHopperGroups = 2;  // warpgroups that multiply
constexpr int kHopperHalf = 64;  // rows of a product; a warpgroup has two of them
constexpr int kGroupThreads = 128;
constexpr int kGroupRows = 2 * kHopperHalf;
constexpr int kHopperRows = kHopperGroups * kGroupRows;  // of a block
constexpr int kRowLanes = 8;  // that share a row, where rows can be read 16 bytes at a time
constexpr int kOctet = 8;  // numbers that lie together in a core matrix
constexpr int64_t kMostHopperRows = (INT64_C(1) << 31) - (1 << 15);

// Lines of the table of extremes that prepare.py leaves (codes.py).
enum Extreme : int { kLargest, kSmallest, kResidual, kLowPart, kExcludedNorm, kExponent, kCentre, kColumns };

struct HopperArgs {
  const void* x;
  RowMap x_map;
  int64_t rows;
  int dim, dtype;
  bool vectors;  // rows can be read 16 bytes at a time
  bool split;  // float16 of scaled rows, else the rows' own 16 bits
  bool centred, l2;
  const unsigned char* tiles;  // [tiles, depth / 16, 16 core matrices of 8 codes, 2, 8, 8] 16 bits, negated
  const float* bias;  // [tiles * 128]
  const float* centre;  // [dim]
  const float* extremes;  // [lines, 8]
  int lines;
  int codes, tile_count;
  float accumulation, contract, packing, slack, bound_scale;
  const uint8_t* mask;  // [rows] or null
  unsigned long long* open_count;
  unsigned long long* range;  // bits of the largest finite |x|, or null
  int64_t* indices;  // [rows]; -1 masked, -2 open
  int32_t* open_rows;  // [rows]
  float* ceiling;  // [rows]
};

// Of all codes, as codes.py reduces them.
struct HopperExtremes {
  float largest = 0.0f, smallest = kInfinity, residual = 0.0f, low_part = 0.0f, excluded = kInfinity;
  float centre = 0.0f;
  int exponent = 0;
};

// What a block knows of its rows.
struct HopperRowState {
  float bound[kHopperRows];  // on the error of a score; infinite where there is none
  float scale[kHopperRows];  // of the biases
  int flag[kHopperRows];
  float shift[kHopperGroups][kGroupThreads / kWarp];  // by warp
  HopperExtremes extremes;
  int keep_bits;  // what of a score's bits stays beside a column
};
enum HopperFlag : int { kPlain = 0, kNotThere = 1, kIsMasked = 2, kIsNonfinite = 4 };

__device__ inline HopperExtremes read_extremes(const HopperArgs& a) {
  HopperExtremes e;
  for (int line = static_cast<int>(threadIdx.x) % kWarp; line < a.lines; line += kWarp) {
    const float* at = a.extremes + static_cast<int64_t>(line) * 8;
    e.largest = fmaxf(e.largest, at[kLargest]);
    e.smallest = fminf(e.smallest, at[kSmallest]);
    e.residual = fmaxf(e.residual, at[kResidual]);
    e.low_part = fmaxf(e.low_part, at[kLowPart]);
    e.excluded = fminf(e.excluded, at[kExcludedNorm]);
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    e.largest = fmaxf(e.largest, __shfl_xor_sync(kAllLanes, e.largest, step));
    e.smallest = fminf(e.smallest, __shfl_xor_sync(kAllLanes, e.smallest, step));
    e.residual = fmaxf(e.residual, __shfl_xor_sync(kAllLanes, e.residual, step));
    e.low_part = fmaxf(e.low_part, __shfl_xor_sync(kAllLanes, e.low_part, step));
    e.excluded = fminf(e.excluded, __shfl_xor_sync(kAllLanes, e.excluded, step));
  }
  e.exponent = static_cast<int>(a.extremes[kExponent]);
  e.centre = fminf(a.extremes[kCentre], 0x1p126f);
  return e;
}

// Byte offset of element (r, d) of an operand of `rows` rows.
__host__ __device__ constexpr int core_offset(int rows, int r, int d) {
  return d / 16 * (rows * 32) + r / 8 * 256 + d / 8 % 2 * 128 + r % 8 * 16 + d % 8 * 2;
}

__device__ inline int exponent_of(float v) {
  return static_cast<int>(__float_as_uint(v) >> 23) - 127;
}
__device__ inline float power_of_two(int e) {
  return __uint_as_float(static_cast<unsigned>(e + 127) << 23);
}

// Eight numbers of a row from d on, zero beyond its end.
__device__ inline void load_octet(const HopperArgs& a, int64_t offset, int d, float (&v)[kOctet]) {
  if (a.vectors && d + kOctet <= a.dim) {
    if (a.dtype == VQ_FLOAT32) {
      const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(a.x) + offset + d);
      const float4 p = from[0], q = from[1];
      v[0] = p.x, v[1] = p.y, v[2] = p.z, v[3] = p.w, v[4] = q.x, v[5] = q.y, v[6] = q.z, v[7] = q.w;
      return;
    }
    const uint4 p = *reinterpret_cast<const uint4*>(static_cast<const __half*>(a.x) + offset + d);
    const uint32_t words[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
    for (int i = 0; i < kOctet; ++i) {
      const auto bits = static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2));
      v[i] = a.dtype == VQ_BFLOAT16 ? __uint_as_float(static_cast<uint32_t>(bits) << 16)
                                    : to_float(*reinterpret_cast<const __half*>(&bits));
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    const int64_t at = offset + (d + i) * a.x_map.strides.dim;
    v[i] = 0.0f;
    if (d + i >= a.dim) continue;
    v[i] = a.dtype == VQ_FLOAT32    ? static_cast<const float*>(a.x)[at]
           : a.dtype == VQ_BFLOAT16 ? to_float(static_cast<const __nv_bfloat16*>(a.x)[at])
                                    : to_float(static_cast<const __half*>(a.x)[at]);
  }
}

// Sums and maxima over a row, and the powers of two that come of them.
struct RowMeasures {
  float widest = 0.0f, largest = 0.0f;  // centred and as it is, finite entries alone
  bool nonfinite = false;
  float squares = 0.0f, missed = 0.0f;  // of the scaled row, and of what its 16 bits miss

  __device__ void look(const HopperArgs& a, int d, const float (&v)[kOctet]) {
#pragma unroll
    for (int i = 0; i < kOctet; ++i) {
      const bool inside = d + i < a.dim;
      const float z = inside && a.centred ? v[i] - a.centre[d + i] : v[i];
      if (!is_finite(z)) {
        nonfinite = true;
        continue;
      }
      widest = fmaxf(widest, fabsf(z));
      largest = fmaxf(largest, fabsf(v[i]));
    }
  }

  __device__ void join_lanes() {
    for (int step = kRowLanes / 2; step > 0; step /= 2) {
      widest = fmaxf(widest, __shfl_xor_sync(kAllLanes, widest, step));
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
      nonfinite = __shfl_xor_sync(kAllLanes, static_cast<int>(nonfinite), step) != 0 || nonfinite;
    }
  }
  __device__ void join_sums() {
    for (int step = kRowLanes / 2; step > 0; step /= 2) {
      squares += __shfl_xor_sync(kAllLanes, squares, step);
      missed += __shfl_xor_sync(kAllLanes, missed, step);
    }
  }
};

struct RowPowers {
  float row, score;
  bool in_range;
};

__device__ inline RowPowers row_powers(const HopperArgs& a, const HopperExtremes& e, float widest) {
  if (!a.split) return RowPowers{1.0f, 1.0f, widest < 0x1p50f && (widest > 0x1p-40f || widest == 0.0f)};
  const int row = min(13 - exponent_of(widest), e.exponent + 15), relative = row - e.exponent;
  return RowPowers{power_of_two(row), power_of_two(max(relative, -40)), widest < 0x1p100f && relative >= -40};
}

// Rounds an octet, stores it as a row of a core matrix, and measures what was lost.
template <typename T>
__device__ inline void store_octet(const HopperArgs& a, int d, const float (&v)[kOctet], float factor, bool zero,
                                   unsigned char* to, RowMeasures* m) {
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    const bool inside = d + i < a.dim;
    const float z = inside && a.centred ? v[i] - a.centre[d + i] : v[i];
    const float scaled = zero ? 0.0f : z * factor;
    const T rounded = from_float<T>(scaled);
    const float rest = scaled - to_float(rounded);
    m->squares = fmaf(scaled, scaled, m->squares);
    m->missed = fmaf(rest, rest, m->missed);
    words[i / 2] |= static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(&rounded)) << 16 * (i % 2);
  }
  *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// Upper bound on |computed - exact| of every score of a row that could win, infinite where none is known, and in
// `shift` what makes the row's scores positive: rows.py:error_bound for one product, see docs/certificate.md.
__device__ inline float row_error(const HopperArgs& a, const HopperExtremes& e, const RowMeasures& m,
                                  const RowPowers& p, float* shift) {
  const float row_norm = sqrtf(m.squares), missed = sqrtf(m.missed);
  const float offset = a.centred || !a.l2 ? 0.0f : e.centre;
  float norm = e.largest, bias = 0.0f;
  bool known = e.excluded == kInfinity;
  const float reach = row_norm / p.score + offset;
  if (a.l2) {
    const float seen = e.centre * 0x1p-30f;
    norm = fminf(e.largest, fmaxf(4.0f * reach + 2.0f * e.smallest, seen));
    known = e.excluded > fmaxf(2.0f * reach + e.smallest, seen) * a.slack;
    bias = p.score * (0.5f * norm + offset) * norm;
  }
  const float residual = e.residual + e.low_part;
  const float rounding = 0x1p-23f + (a.centred ? 0x1p-24f : 0.0f);
  float error = row_norm * norm * (a.accumulation + residual + rounding) + norm * missed + bias * 0x1p-23f;
  const float span = row_norm / p.score + norm + 2.0f * e.centre;
  error += (a.contract * span) * (p.score * span);
  *shift = 1.01f * reach * e.largest + 0x1p-100f;
  known = known && residual < 0x1p-5f && *shift < 0x1p80f;
  return known ? a.bound_scale * (error * a.slack * a.slack + 0x1p-100f) : kInfinity;
}

// The rows of one warpgroup. Leaves the largest shift of those with a bound in state->shift.
template <typename T, int DEPTH>
__device__ inline void load_group_rows(const HopperArgs& a, int64_t first, int group, unsigned char* to,
                                       HopperRowState* state) {
  const HopperExtremes& e = state->extremes;
  constexpr int kOctets = DEPTH / kOctet / kRowLanes;  // of a lane
  const int tid = static_cast<int>(threadIdx.x) % kGroupThreads, lane = tid % kRowLanes;
  float group_shift = 0.0f, largest = 0.0f;
  const auto keep = [&](int r, int64_t n, bool counts, const RowMeasures& m, const RowPowers& p) {
    float shift = 0.0f, bound = kInfinity;
    if (counts && !m.nonfinite && p.in_range) bound = row_error(a, e, m, p, &shift);
    if (bound < kInfinity) group_shift = fmaxf(group_shift, shift);
    const int at = group * kGroupRows + r;
    state->bound[at] = bound;
    state->scale[at] = p.score;
    state->flag[at] = n >= a.rows ? kNotThere : !counts ? kIsMasked : m.nonfinite ? kIsNonfinite : kPlain;
  };
  const auto place = [&](int r, int d) {
    return to + r / kHopperHalf * (kHopperHalf * DEPTH * 2) + core_offset(kHopperHalf, r % kHopperHalf, d);
  };
  const auto is_counted = [&](int64_t n) { return n < a.rows && (a.mask == nullptr || a.mask[n] != 0); };
  if (a.vectors) {
    for (int r = tid / kRowLanes; r < kGroupRows; r += kGroupThreads / kRowLanes) {
      const int64_t n = first + r;
      const bool counts = is_counted(n);
      const int64_t offset = counts ? a.x_map.offset(n) : 0;
      float v[kOctets][kOctet] = {};
      RowMeasures m;
#pragma unroll
      for (int i = 0; i < kOctets; ++i) {
        const int d = (i * kRowLanes + lane) * kOctet;
        if (counts && d < a.dim) load_octet(a, offset, d, v[i]);
      }
#pragma unroll
      for (int i = 0; i < kOctets; ++i) m.look(a, (i * kRowLanes + lane) * kOctet, v[i]);
      m.join_lanes();
      const RowPowers p = row_powers(a, e, m.widest);
#pragma unroll
      for (int i = 0; i < kOctets; ++i) {
        const int d = (i * kRowLanes + lane) * kOctet;
        store_octet<T>(a, d, v[i], p.row, !counts || m.nonfinite, place(r, d), &m);
      }
      m.join_sums();
      if (counts && !m.nonfinite) largest = fmaxf(largest, m.largest);
      if (lane == 0) keep(r, n, counts, m, p);
    }
  } else {
    const int r = tid;
    const int64_t n = first + r;
    const bool counts = is_counted(n);
    const int64_t offset = counts ? a.x_map.offset(n) : 0;
    RowMeasures m;
    for (int d = 0; d < a.dim && counts; d += kOctet) {
      float v[kOctet];
      load_octet(a, offset, d, v);
      m.look(a, d, v);
    }
    const RowPowers p = row_powers(a, e, m.widest);
    for (int d = 0; d < DEPTH; d += kOctet) {
      float v[kOctet] = {};
      if (counts && d < a.dim) load_octet(a, offset, d, v);
      store_octet<T>(a, d, v, p.row, !counts || m.nonfinite, place(r, d), &m);
    }
    if (counts && !m.nonfinite) largest = m.largest;
    keep(r, n, counts, m, p);
  }
  group_shift = warp_max(group_shift);
  largest = warp_max(largest);
  if (tid % kWarp == 0) {
    state->shift[group][tid / kWarp] = group_shift;
    if (a.range != nullptr) atomicMax(a.range, static_cast<unsigned long long>(__float_as_uint(largest)));
  }
}

}  // namespace vq_cuda
