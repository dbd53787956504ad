// Once per call: the codebook centred, split into bfloat16 parts and measured, and the counters of
// the fused step cleared, so that the search needs no other launch before it.
//
//     c   = mean of up to 32 codes           (l2; 0 for cosine)
//     e'  = e - c                            float64
//     high = bf16(e'), low = bf16(e' - high)
//     h   = |e'|^2 / 2 + (c - s).e'          s = c if the rows are shifted too, else 0
//
// One warp per code, 64 codes at a time. Reads K D, writes 2 K D bfloat16 (and clears 2 K D words with
// statistics). Non-finite codes get parts 0 and h = infinity: never the smallest score. So do, for exact
// results, copies of earlier codes: the lowest index wins, and a codebook with many equal codes (all zero
// before k-means) would leave every row open.
#include "search.cuh"

namespace vq_cuda {
namespace {

constexpr int kPrepareThreads = 256;
constexpr int kPrepareWarps = kPrepareThreads / kWarp;
constexpr int kCentreCodes = 32;

// A float32 upper bound of the square root; NaN (infinity - infinity above) becomes infinity.
__device__ float norm_above(double squares) {
  const float n = static_cast<float>(sqrt(squares) * (1.0 + 0x1p-20));
  return n == n ? n : kInfinity;
}

template <typename E>
__device__ float centre_of(const PrepareArgs& a, int d) {
  if (!a.centre_codes) return 0.0f;
  const E* codebook = static_cast<const E*>(a.codebook);
  const int count = a.codes < kCentreCodes ? a.codes : kCentreCodes;
  const int step = a.codes / count;
  float sum = 0.0f;
  for (int i = 0; i < count; ++i) {
    const float e = to_float(codebook[static_cast<int64_t>(i) * step * a.dim + d]);
    sum += is_finite(e) ? e : 0.0f;
  }
  const float mean = sum / static_cast<float>(count);
  return is_finite(mean) ? mean : 0.0f;
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
  a.bias[copy] = kInfinity;
  a.usable[copy] = 0;
}

template <typename E>
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(const __grid_constant__ PrepareArgs a) {
  float* centre = reinterpret_cast<float*>(dynamic_shared());  // [D]
  float* scratch = centre + a.dim;  // [warps]
  const int tid = static_cast<int>(threadIdx.x);
  const int warp = tid / kWarp, lane = tid % kWarp;
  const E* codebook = static_cast<const E*>(a.codebook);

  double centre_squares = 0.0;
  for (int d = tid; d < a.dim; d += kPrepareThreads) {
    const float c = centre_of<E>(a, d);
    centre[d] = c;
    if (blockIdx.x == 0) a.centre[d] = c;
    centre_squares += static_cast<double>(c) * c;
  }
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kPrepareThreads;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kPrepareThreads + tid;
  for (int64_t i = number; i < a.counter_count; i += threads) a.counters[i] = 0;
  if (a.table != nullptr) {
    for (int64_t i = number; i < a.table_size; i += threads) a.table[i] = kEmptySlot;
    grid_barrier();
  }
  __syncthreads();

  // From a warp's last code of a tile to its first one of the block's next tile.
  const int next_tile = static_cast<int>(gridDim.x) * kTileCodes - (kTileCodes - kPrepareWarps);
  Extent top{0.0f, 0.0f, 0.0f, 0.0f, 0.0f, kInfinity};
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kTileCodes + warp; at < a.padded_codes;
       at += at % kTileCodes + kPrepareWarps < kTileCodes ? kPrepareWarps : next_tile) {
    const int code = static_cast<int>(at);
    const bool real = code < a.codes;
    double squares = 0.0, low_squares = 0.0, residual_squares = 0.0, bias = 0.0;
    bool finite = true;
    unsigned hash = static_cast<unsigned>(lane + 1) * 0x9e3779b1u;
    for (int d = lane; d < a.padded_dim; d += kWarp) {
      const bool inside = real && d < a.dim;
      const int64_t from = static_cast<int64_t>(code) * a.dim + d;
      const E given = inside ? codebook[from] : from_float<E>(0.0f);
      if (inside && a.codebook_copy != nullptr) static_cast<E*>(a.codebook_copy)[from] = given;
      const float e = to_float(given);
      finite = finite && is_finite(e);
      hash = mixed(hash, value_bits(e));
      const double c = inside ? centre[d] : 0.0;
      const double v = e - c;
      squares += v * v;
      bias += 0.5 * v * v + (a.shift_rows ? 0.0 : c * v);
      if (a.high == nullptr) continue;
      const __nv_bfloat16 high = __float2bfloat16_rn(static_cast<float>(v));
      const double rest = v - to_float(high);
      const __nv_bfloat16 low =
          a.low != nullptr ? __float2bfloat16_rn(static_cast<float>(rest)) : __float2bfloat16_rn(0.0f);
      const double low_value = to_float(low);
      low_squares += low_value * low_value;
      residual_squares += (rest - low_value) * (rest - low_value);
      const int64_t to = static_cast<int64_t>(code) * a.padded_dim + d;
      a.high[to] = high;
      if (a.low != nullptr) a.low[to] = low;
    }
    squares = warp_sum(squares);
    low_squares = warp_sum(low_squares);
    residual_squares = warp_sum(residual_squares);
    bias = warp_sum(bias);
    finite = __all_sync(kAllLanes, finite);
    if (finite && real) {
      top.code = fmaxf(top.code, norm_above(squares));
      if (!a.cosine) top.innermost = fminf(top.innermost, norm_above(squares));
      top.low = fmaxf(top.low, norm_above(low_squares));
      top.residual = fmaxf(top.residual, norm_above(residual_squares));
    } else if (a.high != nullptr) {
      for (int d = lane; d < a.padded_dim; d += kWarp) {
        const int64_t to = static_cast<int64_t>(code) * a.padded_dim + d;
        a.high[to] = __float2bfloat16_rn(0.0f);
        if (a.low != nullptr) a.low[to] = __float2bfloat16_rn(0.0f);
      }
    }
    const float h = a.cosine ? 0.0f : static_cast<float>(bias);
    if (lane == 0) {
      a.bias[code] = real && finite ? h : kInfinity;
      if (real) a.usable[code] = finite;
    }
    if (real && finite && a.table != nullptr) exclude_copies<E>(a, code, hash, lane);
    if (real && a.statistics.counts != nullptr) clear_statistics(a, code, lane);
  }
  top = reduce_extent<kPrepareThreads>(top, scratch);
  // Doubles need twice the room of the floats above: the centre is no longer read here.
  __syncthreads();
  centre_squares = block_sum<kPrepareThreads>(centre_squares, reinterpret_cast<double*>(dynamic_shared()));
  top.centre = norm_above(centre_squares);
  top.offset = a.shift_rows ? 0.0f : top.centre;
  if (tid == 0) a.extents[blockIdx.x] = top;
  if (a.table == nullptr) return;
  // The last block leaves the extent of all codes.
  if (!is_last_block(a.last_ticket, gridDim.x, reinterpret_cast<int*>(scratch))) return;
  __syncthreads();
  top = reduce_extents<kPrepareThreads>(a.extents, static_cast<int>(gridDim.x), scratch);
  if (tid == 0) *a.extent = top;
}

}  // namespace

// With a table in one cooperative launch: it is cleared by all blocks before the first code is entered.
cudaError_t launch_prepare(const PrepareArgs& a, int codebook_dtype, const VqCudaStream& stream) {
  const int64_t shared = (static_cast<int64_t>(a.dim) + 4 * kPrepareWarps) * sizeof(float);
  const bool cooperative = a.table != nullptr;
  return with_dtype(codebook_dtype, [&](auto type) {
    const auto kernel = prepare_kernel<decltype(type)>;
    int64_t blocks = a.padded_codes / kTileCodes;
    if (cooperative) {
      int processors = 0, resident = 0;
      cudaError_t error = device_attribute(&processors, cudaDevAttrMultiProcessorCount, stream.device);
      if (error == cudaSuccess) error = resident_blocks(&resident, kernel, kPrepareThreads, shared);
      if (error != cudaSuccess) return error;
      const int64_t most = static_cast<int64_t>(processors) * resident;
      blocks = blocks < most ? blocks : most;
    }
    return launch(kernel, blocks, kPrepareThreads, shared, stream, cooperative, a);
  });
}

}  // namespace vq_cuda
