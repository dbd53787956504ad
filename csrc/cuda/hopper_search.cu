// First pass of the Triton backend's search on compute capability 9.0: one 16-bit product of all rows with all
// codes by the warpgroup's asynchronous matrix product, and the running best beside it.
//
// A block is two warpgroups that multiply and one warp that copies. A warpgroup owns 128 rows as two halves of 64:
// the second half multiplies while the first is reduced, and the two warpgroups overlap as well, so that the
// matrix unit seldom waits. 256 rows share each tile of 128 codes, which arrives as one bulk copy: prepare.py
// stores the codes tile by tile in the order in which the matrix unit reads shared memory.
//
// Scores are kept positive by a number that the warpgroup adds to all biases, at least max |x||e| of its rows. Bits
// of positive floats are ordered as integers, of which this GPU takes the minimum of three in one instruction; the
// column goes into their low 5 bits, so that minima carry it along and a lower column is the smaller number.
//
// Traffic: x once, the tiles once a block, out of L2. Per (row, code) pair: depth / 4096 of the matrix unit's
// clocks, one FFMA, one LOP3, and for exact results 2.5 minima or maxima, else half a one.
#include "hopper_rows.cuh"
#include "packed_best.cuh"

namespace vq_cuda {
namespace {

constexpr int kMultipliers = kHopperGroups * kGroupThreads;
constexpr int kHopperThreads = kMultipliers + kWarp;

template <int DEPTH>
struct Shape {
  static constexpr int kChunk = DEPTH < 128 ? DEPTH : 128;  // of the depth, in one stage
  static constexpr int kChunks = DEPTH / kChunk;
  static constexpr int kStages = DEPTH == 64 ? 6 : DEPTH == 128 ? 4 : 2;
  static constexpr int kCodeBytes = kHopperTile * kChunk * 2;
  static constexpr int kStageBytes = kCodeBytes + kHopperTile * 4;
  static constexpr int kHalfBytes = kHopperHalf * DEPTH * 2;
  static constexpr int kRowBytes = kHopperRows * DEPTH * 2;
  static constexpr int64_t kShared =
      kRowBytes + kStages * kStageBytes + static_cast<int64_t>(sizeof(HopperRowState)) + 2 * kStages * 8;
};

// Scores of a half's tile: the thread has rows lane / 4 and + 8, columns 8 i + 2 (lane % 4) + {0, 1}. `scales` are
// read anew for each tile, since the products leave few registers.
template <bool EXACT>
__device__ inline void reduce_tile(const float (&d)[64], const float2* bias, float shift, const float* scales,
                                   int tile, int mask, PackedHalves& best) {
  const float scale[2] = {scales[0], scales[8]};
  int low0 = 0x7fffffff, low1 = 0x7fffffff, second0 = 0x7fffffff, second1 = 0x7fffffff;
#pragma unroll
  for (int i = 0; i < kHopperTile / 8; ++i) {
    float2 h = bias[4 * i];
    h.x += shift;
    h.y += shift;
    const auto packed = [&](float bias_of, float scale_of, float product, int column) {
      return packed_score(bias_of, scale_of, product, mask, column);
    };
    join_packed<EXACT>(packed(h.x, scale[0], d[4 * i], 2 * i), packed(h.y, scale[0], d[4 * i + 1], 2 * i + 1), low0,
                       second0);
    join_packed<EXACT>(packed(h.x, scale[1], d[4 * i + 2], 2 * i), packed(h.y, scale[1], d[4 * i + 3], 2 * i + 1),
                       low1, second1);
  }
  offer_packed<EXACT>(best.row[0], low0, second0, tile, mask);
  offer_packed<EXACT>(best.row[1], low1, second1, tile, mask);
}

// Index of a row from what its four lanes found, and a place in the list of open rows where it is not certain.
template <bool EXACT>
__device__ inline void decide(const HopperArgs& a, const HopperRowState& state, int n, int at, float shift,
                              const PackedBest& best, int mask) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int column = best.value & ~mask;
  int score = best.value & mask, second = best.second & mask;
  int code = best.tile * kHopperTile + column / 2 * 8 + lane % 4 * 2 + column % 2;
  for (int step = 1; step < 4; step *= 2) {
    const int their_score = __shfl_xor_sync(kAllLanes, score, step);
    const int their_second = __shfl_xor_sync(kAllLanes, second, step);
    const int their_code = __shfl_xor_sync(kAllLanes, code, step);
    second = min(min(second, their_second), max(score, their_score));
    if (their_score < score || (their_score == score && their_code < code)) code = their_code;
    score = min(score, their_score);
  }
  const int flag = state.flag[at];
  const bool mine = lane % 4 == 0 && !(flag & kNotThere);
  int64_t index = code < a.codes ? code : 0;
  if (flag & kIsNonfinite) index = 0;
  bool open = false;
  float ceiling = kInfinity;
  if (EXACT && mine && flag == kPlain) {
    const float bound = state.bound[at], value = __uint_as_float(static_cast<unsigned>(score));
    const float other = __uint_as_float(static_cast<unsigned>(second));
    const float upper = value + a.packing * value, lower = other - a.packing * other;
    const float moved = state.scale[at] * shift, error = bound + moved * 0x1p-22f;
    // NaN on either side leaves the row open.
    open = !(lower - upper > 2.002f * error);
    if (bound < kInfinity) ceiling = upper - moved + 1.001f * error + value * 0x1p-22f;
  }
  if (EXACT) {
    const unsigned votes = __ballot_sync(kAllLanes, open);
    unsigned long long first = 0;
    if (lane == 0 && votes != 0) first = atomicAdd(a.open_count, static_cast<unsigned long long>(__popc(votes)));
    first = __shfl_sync(kAllLanes, first, 0);
    if (open) {
      const unsigned long long place = first + static_cast<unsigned>(__popc(votes & ((1u << lane) - 1u)));
      a.open_rows[place] = n;
      a.ceiling[place] = ceiling;
      index = -2;
    }
  }
  if (flag & kIsMasked) index = -1;
  if (mine) a.indices[n] = index;
}

// Copies the tiles, once for each block of rows, as fast as the others use them up.
template <int DEPTH>
__device__ void copy_tiles(const HopperArgs& a, int blocks, unsigned char* stages, uint64_t* full, uint64_t* empty) {
  using S = Shape<DEPTH>;
  uint32_t step = 0;
  for (int block = static_cast<int>(blockIdx.x); block < blocks; block += static_cast<int>(gridDim.x)) {
    for (int piece = 0; piece < a.tile_count * S::kChunks; ++piece, ++step) {
      const uint32_t s = step % S::kStages;
      unsigned char* to = stages + s * S::kStageBytes;
      barrier_wait(empty + s, step / S::kStages % 2 ^ 1);
      barrier_expect(full + s, S::kStageBytes);
      copy_bulk(to, a.tiles + static_cast<int64_t>(piece) * S::kCodeBytes, S::kCodeBytes, full + s);
      copy_bulk(to + S::kCodeBytes, a.bias + static_cast<int64_t>(piece / S::kChunks) * kHopperTile, kHopperTile * 4,
                full + s);
    }
  }
}

template <typename T, int DEPTH, bool EXACT>
__global__ void __launch_bounds__(kHopperThreads, 1) hopper_search_kernel(const __grid_constant__ HopperArgs a) {
  using S = Shape<DEPTH>;
  unsigned char* shared = dynamic_shared();
  unsigned char* stages = shared + S::kRowBytes;
  auto* state = reinterpret_cast<HopperRowState*>(stages + S::kStages * S::kStageBytes);
  auto* full = reinterpret_cast<uint64_t*>(state + 1);
  uint64_t* empty = full + S::kStages;
  // By way of a shuffle, so that the compiler sees that it is the same for all lanes.
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarp, 0);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (threadIdx.x == 0) {
    for (int s = 0; s < S::kStages; ++s) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, kHopperGroups);
    }
    barrier_init_fence();
    state->keep_bits = ~31;
  }
  if (warp == 0) {
    const Extremes extremes = read_extremes(a);
    if (lane == 0) state->extremes = extremes;
  }
  __syncthreads();
  const int blocks = static_cast<int>((a.rows + kHopperRows - 1) / kHopperRows);
  const int grid = static_cast<int>(gridDim.x);
  if (warp == kMultipliers / kWarp) {
    if (lane == 0) copy_tiles<DEPTH>(a, blocks, stages, full, empty);
    return;
  }

  const int group = warp / 4, thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  unsigned char* rows = shared + group * 2 * S::kHalfBytes;
  const uint64_t rows_at = matrix_descriptor(shared_address(rows));
  const uint32_t stage_address = shared_address(stages);
  // By way of shared memory, or the assembler sees that it is the same for all lanes: clearing bits and setting
  // others are then two instructions, not one.
  const int mask = state->keep_bits;
  uint32_t step = 0;
  for (int block = static_cast<int>(blockIdx.x); block < blocks; block += grid) {
    const int first = block * kHopperRows + group * kGroupRows;
    warpgroup_barrier(1 + group);  // nobody multiplies by the last block's rows any more, or reads their state
    load_group_rows<T, DEPTH>(a, first, group, rows, state);
    fence_matrix_reads();
    warpgroup_barrier(1 + group);
    const float* shifts = state->shift[group];
    const float shift = fmaxf(fmaxf(shifts[0], shifts[1]), fmaxf(shifts[2], shifts[3]));
    const int own = group * kGroupRows + warp % 4 * 16 + lane / 4;  // this thread's first row
    const float* scales = state->scale + own;

    PackedHalves low_best, high_best;
    for (int t = 0; t < a.tile_count; ++t) {
      float low[64], high[64];  // products of the first 64 rows, and of the others
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c, ++step) {
        const uint32_t s = step % S::kStages;
        const uint64_t codes = matrix_descriptor(stage_address + s * S::kStageBytes);
        // Behind the barrier, so that the descriptors of all chunks do not wait in registers.
        const uint64_t own_rows = S::kChunks > 1 ? hidden(rows_at) : rows_at;
        barrier_wait(full + s, step / S::kStages % 2);
        multiply_fence();
#pragma unroll
        for (int k = 0; k < S::kChunk / 16; ++k) {
          multiply<T>(low, advance(own_rows, (c * S::kChunk / 16 + k) * (kHopperHalf * 32)),
                      advance(codes, k * (kHopperTile * 32)), c + k);
        }
        multiply_commit();
#pragma unroll
        for (int k = 0; k < S::kChunk / 16; ++k) {
          multiply<T>(high, advance(own_rows, S::kHalfBytes + (c * S::kChunk / 16 + k) * (kHopperHalf * 32)),
                      advance(codes, k * (kHopperTile * 32)), c + k);
        }
        multiply_commit();
        if (c == S::kChunks - 1) {
          const auto* bias = reinterpret_cast<const float2*>(stages + s * S::kStageBytes + S::kCodeBytes) + lane % 4;
          multiply_wait<1>();
          reduce_tile<EXACT>(low, bias, shift, scales, t, mask, low_best);
          multiply_wait<0>();
          reduce_tile<EXACT>(high, bias, shift, scales + kHopperHalf, t, mask, high_best);
        } else {
          multiply_wait<0>();
        }
        warpgroup_barrier(1 + group);  // all have read the stage
        if (thread == 0) barrier_arrive(empty + s);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int n = first + warp % 4 * 16 + lane / 4 + 8 * i;
      decide<EXACT>(a, *state, n, own + 8 * i, shift, low_best.row[i], mask);
      decide<EXACT>(a, *state, n + kHopperHalf, own + kHopperHalf + 8 * i, shift, high_best.row[i], mask);
    }
  }
}

template <typename T, int DEPTH>
cudaError_t launch_hopper(const HopperArgs& a, bool exact, int processors, const VqCudaStream& stream) {
  const int64_t blocks = ceil_div(a.rows, kHopperRows), grid = blocks < processors ? blocks : processors;
  const auto kernel = exact ? hopper_search_kernel<T, DEPTH, true> : hopper_search_kernel<T, DEPTH, false>;
  return launch(kernel, grid, kHopperThreads, Shape<DEPTH>::kShared, stream, false, a);
}

template <typename T>
cudaError_t with_depth(const HopperArgs& a, int depth, bool exact, int processors, const VqCudaStream& stream) {
  switch (depth) {
    case 64:
      return launch_hopper<T, 64>(a, exact, processors, stream);
    case 128:
      return launch_hopper<T, 128>(a, exact, processors, stream);
    case 256:
      return launch_hopper<T, 256>(a, exact, processors, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace vq_cuda

extern "C" int vq_cuda_hopper_search(const VqRows* x, const VqHopperSearch* search, VqCudaStream stream) {
  using namespace vq_cuda;
  const VqHopperSearch& s = *search;
  const int64_t rows = x->batches * x->rows;
  if (rows < 1 || rows > kMostHopperRows || s.codes < 1 || s.codes > s.padded_codes ||
      s.padded_codes % kHopperTile != 0 || x->dim < 1 || x->dim > s.depth) {
    return cudaErrorInvalidValue;
  }
  HopperArgs a{};
  const bool split = s.split != 0;
  a.x = row_source(*x, s.centred != 0, s.centre);
  a.rows = rows;
  a.bound = ScaledBound{split,
                        s.metric == VQ_L2,
                        static_cast<float>(s.accumulation),
                        0.0f,
                        static_cast<float>(s.contract),
                        static_cast<float>(s.slack),
                        static_cast<float>(s.bound_scale)};
  a.tiles = static_cast<const unsigned char*>(s.tiles);
  a.bias = s.bias;
  a.extremes = s.extremes;
  a.lines = static_cast<int>(s.lines);
  a.codes = static_cast<int>(s.codes);
  a.tile_count = static_cast<int>(s.padded_codes / kHopperTile);
  a.packing = static_cast<float>(s.packing);
  a.mask = s.mask;
  a.open_count = reinterpret_cast<unsigned long long*>(s.open_count);
  a.range = reinterpret_cast<unsigned long long*>(s.range);
  a.indices = s.indices;
  a.open_rows = s.open_rows;
  a.ceiling = s.ceiling;
  int processors = 0;
  const cudaError_t error = device_attribute(&processors, cudaDevAttrMultiProcessorCount, stream.device);
  if (error != cudaSuccess) return error;
  const bool bf16 = !split && x->dtype == VQ_BFLOAT16;
  return bf16 ? with_depth<__nv_bfloat16>(a, static_cast<int>(s.depth), s.exact != 0, processors, stream)
              : with_depth<__half>(a, static_cast<int>(s.depth), s.exact != 0, processors, stream);
}
