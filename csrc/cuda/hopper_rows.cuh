// Rows of a block of the Hopper search on their way into shared memory, in the matrix unit's order, and what is known
// of each before any product.
#pragma once

#include "hopper_ptx.cuh"
#include "scaled_rows.cuh"

namespace vq_cuda {

constexpr int kHopperTile = 128;  // codes of a tile
constexpr int kHopperGroups = 4;  // warpgroups that multiply
constexpr int kGroupThreads = 128;
constexpr int kGroupRows = 64;  // of a product
constexpr int kHopperRows = kHopperGroups * kGroupRows;  // of a block
constexpr int64_t kMostHopperRows = (INT64_C(1) << 31) - (1 << 15);

// Lines of the table of extremes that prepare.py leaves (codes.py).
enum Extreme : int { kLargest, kSmallest, kResidual, kLowPart, kExcludedNorm, kExponent, kCentre, kColumns };

struct HopperArgs {
  RowSource x;
  int64_t rows;
  ScaledBound bound;
  const unsigned char* tiles;  // [tiles, depth / 16, 16 core matrices of 8 codes, 2, 8, 8] 16 bits, negated
  const float* bias;  // [tiles * 128]
  const float* extremes;  // [lines, 8]
  int lines;
  int codes, tile_count;
  bool exact;
  const uint8_t* mask;  // [rows] or null
  unsigned long long* open_count;
  unsigned long long* range;  // bits of the largest finite |x|, or null
  int64_t* indices;  // [rows]; -1 masked, -2 open
  int32_t* open_rows;  // [rows]
  float* ceiling;  // [rows]
};

// A thread of a product has the columns 8 i + 2 (lane % 4) + {0, 1}: biases lie by lane, four words further on for each,
// so that 16 bytes for each of the four lanes come out of 16 different banks.
constexpr int kBiasLanes = 4, kBiasStride = kHopperTile / kBiasLanes + 4;

// What a block knows of its rows.
struct HopperRowState {
  float bound[kHopperRows];  // on the error of a score; infinite where there is none
  float scale[kHopperRows];  // of the biases
  int flag[kHopperRows];
  float shift[kHopperGroups][kGroupThreads / kWarp];  // by warp
  float bias[kHopperGroups][2][kBiasLanes * kBiasStride];  // of two tiles in turn, in the group's window
  Extremes extremes;
  int columns;  // 32, of which the compiler knows nothing
};
enum HopperFlag : int { kPlain = 0, kNotThere = 1, kIsMasked = 2, kIsNonfinite = 4 };

__device__ inline Extremes read_extremes(const HopperArgs& a) {
  Extremes e;
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

// The rows of one warpgroup. Leaves the largest shift in state->shift: of those with a bound, or of all that have a
// place in the window where none is asked for.
template <typename T, int DEPTH>
__device__ inline void load_group_rows(const HopperArgs& a, int64_t first, int group, unsigned char* to,
                                       HopperRowState* state) {
  const Extremes& e = state->extremes;
  constexpr int kOctets = DEPTH / kOctet / kRowLanes;  // of a lane
  const int tid = static_cast<int>(threadIdx.x) % kGroupThreads, lane = tid % kRowLanes;
  float group_shift = 0.0f, largest = 0.0f;
  const auto keep = [&](int r, int64_t n, bool counts, const RowMeasures<1>& m, const RowPowers& p) {
    float shift = 0.0f, bound = kInfinity;
    if (counts && !m.nonfinite && p.in_range) {
      bound = scaled_error<1, 1>(a.bound, e, a.x.centred, m, p.score, &shift);
    }
    if (a.exact ? bound < kInfinity : shift < 0x1p80f) group_shift = fmaxf(group_shift, shift);
    const int at = group * kGroupRows + r;
    state->bound[at] = bound;
    state->scale[at] = p.score;
    state->flag[at] = n >= a.rows ? kNotThere : !counts ? kIsMasked : m.nonfinite ? kIsNonfinite : kPlain;
  };
  const auto place = [&](int r, int d) {
    return to + core_offset(kGroupRows, r, d);
  };
  const auto is_counted = [&](int64_t n) { return n < a.rows && (a.mask == nullptr || a.mask[n] != 0); };
  if (a.x.vectors) {
    for (int r = tid / kRowLanes; r < kGroupRows; r += kGroupThreads / kRowLanes) {
      const int64_t n = first + r;
      const bool counts = is_counted(n);
      const int64_t offset = counts ? a.x.map.offset(n) : 0;
      float v[kOctets][kOctet] = {};
      RowMeasures<1> m;
#pragma unroll
      for (int i = 0; i < kOctets; ++i) {
        const int d = (i * kRowLanes + lane) * kOctet;
        if (counts && d < a.x.dim) load_octet(a.x, offset, d, v[i]);
      }
#pragma unroll
      for (int i = 0; i < kOctets; ++i) m.look(a.x, (i * kRowLanes + lane) * kOctet, v[i]);
      m.join_lanes();
      const RowPowers p = row_powers(a.bound, e, m.widest);
#pragma unroll
      for (int i = 0; i < kOctets; ++i) {
        const int d = (i * kRowLanes + lane) * kOctet;
        store_octet<T>(a.x, d, v[i], p.row, !counts || m.nonfinite, place(r, d), &m);
      }
      m.join_sums();
      if (counts && !m.nonfinite) largest = fmaxf(largest, m.largest);
      if (lane == 0) keep(r, n, counts, m, p);
    }
  } else if (tid < kGroupRows) {
    const int r = tid;
    const int64_t n = first + r;
    const bool counts = is_counted(n);
    const int64_t offset = counts ? a.x.map.offset(n) : 0;
    RowMeasures<1> m;
    for (int d = 0; d < a.x.dim && counts; d += kOctet) {
      float v[kOctet];
      load_octet(a.x, offset, d, v);
      m.look(a.x, d, v);
    }
    const RowPowers p = row_powers(a.bound, e, m.widest);
    for (int d = 0; d < DEPTH; d += kOctet) {
      float v[kOctet] = {};
      if (counts && d < a.x.dim) load_octet(a.x, offset, d, v);
      store_octet<T>(a.x, d, v, p.row, !counts || m.nonfinite, place(r, d), &m);
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
