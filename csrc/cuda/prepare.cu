// Once per call: the codebook centred, scaled, split into 16-bit parts and measured, and the counters of the passes
// cleared, so that the search needs no other launch before it.
//
//     c   = mean of up to 32 codes           (l2; 0 for cosine and for codes that are not split)
//     s   = a power of two that brings those codes to half of float16's exponents, as in prepare.py
//     e'' = s (e - c)                        float64
//     high = -f16(e''), low = f16(-e'' - high)
//     h   = |e''|^2 / 2 + s (c - o).e''      o = c if the rows are centred too, else 0
//
// One warp per code, 64 codes at a time. Reads K D, writes 2 K D 16-bit numbers (and clears 2 K D words with
// statistics). Codes out of the parts' range, non-finite ones and, for exact results, copies of earlier codes get
// parts 0 and an h that never wins: the lowest index wins, and a codebook with many equal codes (all zero before
// k-means) would leave every row open.
#include "search.cuh"

namespace vq_cuda {
namespace {

constexpr int kPrepareThreads = 256;
constexpr int kPrepareWarps = kPrepareThreads / kWarp;
constexpr int kCentreCodes = 32;
constexpr double kWidestPart = 60000.0;  // of float16
constexpr float kLargestNorm = 0x1p45f;  // of codes that are not scaled
constexpr double kUp = 1.0 + 0x1p-20;  // more than a float32 rounding of a float64 result

// A float32 upper bound of the square root; NaN (infinity - infinity above) becomes infinity.
__device__ float norm_above(double squares) {
  const float n = static_cast<float>(sqrt(squares) * kUp);
  return n == n ? n : kInfinity;
}

// A float32 upper bound of sqrt(squares) / norm.
__device__ float relative_norm(double squares, double norm) {
  return static_cast<float>(sqrt(squares) / (norm > 0.0 ? norm : 1.0) * kUp);
}

// Entry d of the centre, and what it is off the codes that it is the mean of.
template <typename E>
__device__ float centre_of(const PrepareArgs& a, int d, float* spread) {
  const E* codebook = static_cast<const E*>(a.codebook);
  const int count = a.codes < kCentreCodes ? a.codes : kCentreCodes, step = a.codes / count;
  float sum = 0.0f;
  for (int i = 0; i < count; ++i) {
    const float e = to_float(codebook[static_cast<int64_t>(i) * step * a.dim + d]);
    sum += fabsf(e) < 0x1p60f ? e : 0.0f;
  }
  const float mean = a.centre_codes ? sum / static_cast<float>(count) : 0.0f;
  if (!a.split) return mean;
  for (int i = 0; i < count; ++i) {
    const float e = to_float(codebook[static_cast<int64_t>(i) * step * a.dim + d]);
    if (fabsf(e) < 0x1p60f) *spread = fmaxf(*spread, fabsf(e - mean));
  }
  return mean;
}

__device__ void clear_statistics(const PrepareArgs& a, int code, int lane) {
  const StatisticsArgs& s = a.statistics;
  if (lane == 0) {
    s.counts[code] = 0;
    s.largest[code] = 0;
    s.done[code] = 0;
  }
  for (int d = lane; d < a.dim; d += kWarp) {
    s.accumulators[static_cast<int64_t>(code) * a.dim + d] = 0;
    s.sums[static_cast<int64_t>(code) * a.dim + d] = 0.0f;
  }
}

// Adding 0 makes -0 equal to 0, which no score tells apart.
__device__ unsigned value_bits(float v) {
  return __float_as_uint(v + 0.0f);
}

__device__ unsigned mixed(unsigned hash, unsigned bits) {
  hash = (hash ^ bits) * 0x85ebca6bu;
  return hash ^ hash >> 15;
}

template <typename E>
__device__ bool same_code(const PrepareArgs& a, int code, unsigned other, int lane) {
  const E* codebook = static_cast<const E*>(a.codebook);
  bool same = true;
  for (int d = lane; d < a.dim; d += kWarp) {
    same = same && value_bits(to_float(codebook[static_cast<int64_t>(code) * a.dim + d])) ==
                       value_bits(to_float(codebook[static_cast<int64_t>(other) * a.dim + d]));
  }
  return __all_sync(kAllLanes, same);
}

// The bias of a code that is not to win.
__device__ float losing_bias(const PrepareArgs& a) {
  return a.high != nullptr ? kExcluded : kInfinity;
}

// Enters a finite code in a table of the codes seen so far, and makes all but the first of equal codes
// unusable: whichever of two comes later in the codebook, whichever comes here first. A code is entered after
// its bias was written, so that who finds it there may overwrite that.
template <typename E>
__device__ void exclude_copies(const PrepareArgs& a, int code, unsigned hash, int lane) {
  for (int step = kWarp / 2; step > 0; step /= 2) hash = mixed(hash, __shfl_xor_sync(kAllLanes, hash, step));
  hash = __shfl_sync(kAllLanes, hash, 0);
  __threadfence();
  unsigned slot = hash, other = kEmptySlot;
  for (;; ++slot) {
    slot &= a.table_size - 1;
    if (lane == 0) {
      other = __ldcg(a.table + slot);
      if (other == kEmptySlot) other = atomicCAS(a.table + slot, kEmptySlot, static_cast<unsigned>(code));
    }
    other = __shfl_sync(kAllLanes, other, 0);
    if (other == kEmptySlot) return;
    if (same_code<E>(a, code, other, lane)) break;
  }
  if (lane != 0) return;
  __threadfence();
  const unsigned mine = static_cast<unsigned>(code);
  const unsigned earlier = other < mine ? other : atomicMin(a.table + slot, mine);
  const unsigned copy = max(earlier, mine);
  a.bias[copy] = losing_bias(a);
  a.usable[copy] = 0;
}

// A number as one part, its bits and its value.
struct Part {
  uint16_t bits;
  double value;
};
__device__ Part part_of(const PrepareArgs& a, double v) {
  const float rounded = static_cast<float>(v);
  if (a.bf16) {
    const __nv_bfloat16 b = __float2bfloat16_rn(rounded);
    return Part{*reinterpret_cast<const uint16_t*>(&b), to_float(b)};
  }
  const __half h = __float2half_rn(rounded);
  return Part{*reinterpret_cast<const uint16_t*>(&h), to_float(h)};
}

// What a warp adds up of a code.
struct CodeSums {
  double squares = 0.0, low_squares = 0.0, residual_squares = 0.0, bias = 0.0;
  float widest = 0.0f;
  bool finite = true;
  unsigned hash;
};

// Reads a code, and writes its parts and its copy.
template <typename E>
__device__ CodeSums read_code(const PrepareArgs& a, int code, int lane, const float* centre, float scale) {
  const E* codebook = static_cast<const E*>(a.codebook);
  CodeSums sums;
  sums.hash = static_cast<unsigned>(lane + 1) * 0x9e3779b1u;
  for (int d = lane; d < a.padded_dim; d += kWarp) {
    const bool inside = code < a.codes && d < a.dim;
    const int64_t from = static_cast<int64_t>(code) * a.dim + d;
    const E given = inside ? codebook[from] : from_float<E>(0.0f);
    if (inside && a.codebook_copy != nullptr) static_cast<E*>(a.codebook_copy)[from] = given;
    const float e = to_float(given);
    sums.finite = sums.finite && is_finite(e);
    sums.hash = mixed(sums.hash, value_bits(e));
    const double c = inside ? centre[d] : 0.0;
    const double v = (e - c) * scale;
    sums.squares += v * v;
    sums.widest = fmaxf(sums.widest, static_cast<float>(fabs(v)));
    sums.bias += 0.5 * v * v + (a.rows_are_centred ? 0.0 : c * scale * v);
    if (a.high == nullptr) continue;
    const int64_t to = static_cast<int64_t>(code) * a.padded_dim + d;
    const Part high = part_of(a, -v);
    a.high[to] = high.bits;
    double rest = -v - high.value;
    if (a.low != nullptr) {
      const Part low = part_of(a, rest);
      a.low[to] = low.bits;
      sums.low_squares += low.value * low.value;
      rest -= low.value;
    }
    sums.residual_squares += rest * rest;
  }
  sums.squares = warp_sum(sums.squares);
  sums.low_squares = warp_sum(sums.low_squares);
  sums.residual_squares = warp_sum(sums.residual_squares);
  sums.bias = warp_sum(sums.bias);
  sums.widest = warp_max(sums.widest);
  sums.finite = __all_sync(kAllLanes, sums.finite);
  return sums;
}

// Four blocks a multiprocessor: left alone, nvcc 13.0 holds the kernel to 48 registers and spills.
template <typename E>
__global__ void __launch_bounds__(kPrepareThreads, 4) prepare_kernel(const __grid_constant__ PrepareArgs a) {
  float* centre = reinterpret_cast<float*>(dynamic_shared());  // [D]
  float* scratch = centre + a.dim;  // [warps]
  const int tid = static_cast<int>(threadIdx.x);
  const int warp = tid / kWarp, lane = tid % kWarp;

  double centre_squares = 0.0;
  float spread = 0.0f;
  for (int d = tid; d < a.dim; d += kPrepareThreads) {
    const float c = centre_of<E>(a, d, &spread);
    centre[d] = c;
    if (blockIdx.x == 0) a.centre[d] = c;
    centre_squares += static_cast<double>(c) * c;
  }
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kPrepareThreads;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kPrepareThreads + tid;
  for (int64_t i = number; i < a.counter_count; i += threads) a.counters[i] = 0;
  if (a.table != nullptr) {
    for (int64_t i = number; i < a.table_size; i += threads) a.table[i] = kEmptySlot;
  }
  grid_barrier();
  spread = block_max<kPrepareThreads>(spread, scratch);
  Extremes top;
  // The sample fills half of float16's exponents from the top: codes 2^5 times wider still fit.
  if (spread > 0.0f) top.exponent = min(max(10 - exponent_of(spread), -100), 100);
  const float scale = power_of_two(top.exponent);

  // From a warp's last code of a tile to its first one of the block's next tile.
  const int next_tile = static_cast<int>(gridDim.x) * kTileCodes - (kTileCodes - kPrepareWarps);
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kTileCodes + warp; at < a.padded_codes;
       at += at % kTileCodes + kPrepareWarps < kTileCodes ? kPrepareWarps : next_tile) {
    const int code = static_cast<int>(at);
    const bool real = code < a.codes;
    const CodeSums sums = read_code<E>(a, code, lane, centre, scale);
    const bool finite = real && sums.finite;
    const double norm = sqrt(sums.squares);
    const bool outside = a.high != nullptr && (a.split ? sums.widest > kWidestPart : norm > kLargestNorm);
    const bool usable = finite && !outside;
    if (usable) {
      top.largest = fmaxf(top.largest, norm_above(sums.squares));
      if (!a.cosine) top.smallest = fminf(top.smallest, norm_above(sums.squares));
      top.low_part = fmaxf(top.low_part, relative_norm(sums.low_squares, norm));
      // 2^-50 covers the float64 rounding of the scaled code itself.
      top.residual = fmaxf(top.residual, relative_norm(sums.residual_squares, norm) + 0x1p-50f);
    } else {
      if (finite) top.excluded = fminf(top.excluded, static_cast<float>(norm / kUp));
      for (int d = lane; d < a.padded_dim && a.high != nullptr; d += kWarp) {
        const int64_t to = static_cast<int64_t>(code) * a.padded_dim + d;
        a.high[to] = 0;
        if (a.low != nullptr) a.low[to] = 0;
      }
    }
    if (lane == 0) {
      a.bias[code] = !usable ? losing_bias(a) : a.cosine ? 0.0f : static_cast<float>(sums.bias);
      if (real) a.usable[code] = finite;
    }
    if (finite && a.table != nullptr) exclude_copies<E>(a, code, sums.hash, lane);
    if (real && a.statistics.counts != nullptr) clear_statistics(a, code, lane);
  }
  top = reduce_extremes<kPrepareThreads>(top, scratch);
  // Doubles need twice the room of the floats above: the centre is no longer read here.
  __syncthreads();
  centre_squares = block_sum<kPrepareThreads>(centre_squares, reinterpret_cast<double*>(dynamic_shared()));
  top.centre = fminf(norm_above(centre_squares * scale * scale), 0x1p126f);
  if (tid == 0) a.block_extremes[blockIdx.x] = top;
  // The last block leaves those of all codes.
  if (!is_last_block(a.last_ticket, gridDim.x, reinterpret_cast<int*>(scratch))) return;
  __syncthreads();
  top = reduce_blocks<kPrepareThreads>(top, a.block_extremes, static_cast<int>(gridDim.x), scratch);
  if (tid == 0) *a.extremes = top;
}

}  // namespace

// In one cooperative launch: counters and table are cleared by all blocks before the first code is entered.
cudaError_t launch_prepare(const PrepareArgs& a, int codebook_dtype, const VqCudaStream& stream) {
  const int64_t shared = (static_cast<int64_t>(a.dim) + 4 * kPrepareWarps) * sizeof(float);
  return with_dtype(codebook_dtype, [&](auto type) {
    const auto kernel = prepare_kernel<decltype(type)>;
    int processors = 0, resident = 0;
    cudaError_t error = device_attribute(&processors, cudaDevAttrMultiProcessorCount, stream.device);
    if (error == cudaSuccess) error = resident_blocks(&resident, kernel, kPrepareThreads, shared);
    if (error != cudaSuccess) return error;
    const int64_t tiles = a.padded_codes / kTileCodes, most = static_cast<int64_t>(processors) * resident;
    return launch(kernel, tiles < most ? tiles : most, kPrepareThreads, shared, stream, true, a);
  });
}

}  // namespace vq_cuda
