// First pass of the Triton backend's search on compute capability 9.0: one 16-bit product of all rows with all
// codes by the warpgroup's asynchronous matrix product, and the running best beside it.
//
// A block is four warpgroups that multiply 64 rows each and one warp that copies. While the scores of one warpgroup are on their
// way from the matrix unit the other three reduce theirs; nothing but the tiles of 128 codes, which all 256 rows
// share, keeps them in step. A tile arrives as one bulk copy: prepare.py stores the codes tile by tile in the order in
// which the matrix unit reads shared memory.
//
// Scores of a warpgroup lie in a window of floats with one exponent (`Window`), whose significands are ordered as integers
// and count in equal steps. Times 32, an integer multiply-add, makes room for the column and drops the exponent: minima carry
// the column along, and of equal scores the lower column is the smaller number. Of such integers this GPU takes
// the minimum of three in one instruction. The multiply-add leaves the units that take minima, which are the
// busiest, alone.
//
// Traffic: x once, the tiles once a block, out of L2. Per (row, code) pair: depth / 2048 of the matrix unit's
// clocks, one FFMA, one IMAD, and for exact results 2.5 minima or maxima, else half a one.
#include "hopper_rows.cuh"
#include "packed_best.cuh"

namespace vq_cuda {
namespace {

constexpr int kMultipliers = kHopperGroups * kGroupThreads;
constexpr int kHopperThreads = kMultipliers + kGroupThreads;
// Registers of a thread. The block is launched with 96 for each of five warpgroups, and gets no more than that: the one that
// copies gives most of its own to the others. Asking for more than there are is waiting for ever.
constexpr int kMultiplierRegisters = 112, kCopierRegisters = 24;
constexpr int kLaunchRegisters = 65536 / kHopperThreads / 8 * 8;
static_assert(kMultipliers * kMultiplierRegisters + kGroupThreads * kCopierRegisters <= kHopperThreads * kLaunchRegisters,
              "warpgroups would wait for registers that nobody gives");
constexpr int kColumnBits = 5;
constexpr int kColumnMask = (1 << kColumnBits) - 1;
constexpr int kSignificandBits = 23;

template <int DEPTH>
struct Shape {
  static constexpr int kChunk = DEPTH == 128 ? 128 : 64;  // of the depth, in one stage
  static constexpr int kChunks = DEPTH / kChunk;
  static constexpr int kStages = DEPTH == 64 ? 6 : DEPTH == 128 ? 4 : 5;
  static constexpr int kCodeBytes = kHopperTile * kChunk * 2;
  static constexpr int kStageBytes = kCodeBytes + kHopperTile * 4;
  static constexpr int kGroupBytes = kGroupRows * DEPTH * 2;
  static constexpr int kRowBytes = kHopperRows * DEPTH * 2;
  static constexpr int64_t kShared =
      kRowBytes + kStages * kStageBytes + static_cast<int64_t>(sizeof(HopperRowState)) + 2 * kStages * 8;
};

// Where the scores of a warpgroup lie, in the codes' units: [power, 2 power), in steps of power / 2^23. `reach` is
// at least |z . e| of every row and code, so that a bias of 2 reach and half the innermost code's squared norm cannot win.
struct Window {
  float power;  // of two
  float shift;  // added to every bias
  float highest;  // bias; larger ones, those of codes that are left out, become this one

  // `lowest` keeps power times the smallest scale of a row a normal number.
  __device__ Window(float largest_shift, float smallest_norm, float lowest) {
    const float reach = fmaxf(largest_shift, lowest);
    const float half = smallest_norm < 0x1p60f ? 0.5f * smallest_norm * smallest_norm : 0.0f;
    power = power_of_two(exponent_of(1.01f * (4.04f * reach + half)) + 1);
    shift = power + (1.005f * reach + 0x1p-20f * power);
    highest = 2.0f * reach + half;
  }
};

// Scores of a tile: the thread has rows lane / 4 and + 8 of its warp's 16, columns 8 i + 2 (lane % 4) + {0, 1}.
template <bool EXACT>
__device__ inline void reduce_tile(const float (&d)[64], const float4* bias, const float (&scale)[2], int tile,
                                   int columns, PackedBest (&best)[2]) {
  int low[2] = {0x7fffffff, 0x7fffffff}, second[2] = {0x7fffffff, 0x7fffffff};
#pragma unroll
  for (int i = 0; i < kHopperTile / 16; ++i) {
    const float4 h = bias[i];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const auto packed = [&](float bias_of, float product, int column) {
        return multiply_add(__float_as_uint(fmaf(bias_of, scale[r], product)), columns, column);
      };
      const float* p = d + 8 * i + 2 * r;
      join_packed<EXACT>(packed(h.x, p[0], 4 * i), packed(h.y, p[1], 4 * i + 1), low[r], second[r]);
      join_packed<EXACT>(packed(h.z, p[4], 4 * i + 2), packed(h.w, p[5], 4 * i + 3), low[r], second[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) offer_packed<EXACT>(best[r], low[r], second[r], tile, ~kColumnMask);
}

// Index of a row from what its four lanes found, and a place in the list of open rows where it is not certain.
template <bool EXACT>
__device__ inline void decide(const HopperArgs& a, const HopperRowState& state, int n, int at, const Window& window,
                              const PackedBest& best) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int column = best.value & kColumnMask;
  int score = best.value >> kColumnBits, second = best.second >> kColumnBits;
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
    const float bound = state.bound[at], scale = state.scale[at];
    // A score was rounded twice in the window, by half a step each.
    const float step = window.power * scale * (1.0f / (1 << kSignificandBits)), error = bound + step;
    // NaN on either side leaves the row open.
    open = !(static_cast<float>(second - score) * step > 2.002f * error);
    if (bound < kInfinity) {
      const int significand = score & ((1 << kSignificandBits) - 1);
      const float value = static_cast<float>(significand) * step + (window.power - window.shift) * scale;
      ceiling = value + 1.001f * error + 3.0f * step;
    }
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
    state->columns = 1 << kColumnBits;
  }
  if (warp == 0) {
    const Extremes extremes = read_extremes(a);
    if (lane == 0) state->extremes = extremes;
  }
  __syncthreads();
  const int blocks = static_cast<int>((a.rows + kHopperRows - 1) / kHopperRows);
  const int grid = static_cast<int>(gridDim.x);
  if (warp >= kMultipliers / kWarp) {
    give_registers<kCopierRegisters>();
    if (warp == kMultipliers / kWarp && lane == 0) copy_tiles<DEPTH>(a, blocks, stages, full, empty);
    return;
  }
  take_registers<kMultiplierRegisters>();

  const int group = warp / 4, thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  unsigned char* rows = shared + group * S::kGroupBytes;
  const uint32_t rows_at = matrix_descriptor(shared_address(rows)), stages_at = matrix_descriptor(shared_address(stages));
  // By way of shared memory, or the compiler would shift, in the unit that takes minima.
  const int columns = state->columns;
  const int bias_at = thread % 8 / 2 * kBiasStride + thread / 8 * 2 + thread % 2;
  uint32_t s = 0, parity = 0;  // the stage, and of its barrier's phase
  for (int block = static_cast<int>(blockIdx.x); block < blocks; block += grid) {
    warpgroup_barrier(1 + group);  // nobody multiplies by the last block's rows any more, or reads their state
    load_group_rows<T, DEPTH>(a, block * kHopperRows + group * kGroupRows, group, rows, state);
    fence_matrix_reads();
    warpgroup_barrier(1 + group);
    const float* shifts = state->shift[group];
    const Window window(fmaxf(fmaxf(shifts[0], shifts[1]), fmaxf(shifts[2], shifts[3])),
                        a.bound.l2 ? state->extremes.smallest : 0.0f, a.bound.split ? 0x1p-60f : 0x1p-100f);
    const int own = group * kGroupRows + warp % 4 * 16 + lane / 4;  // this thread's first row
    const float scale[2] = {state->scale[own], state->scale[own + 8]};

    PackedBest best[2];
    for (int t = 0; t < a.tile_count; ++t) {
      float d[64];
      float* biases = state->bias[group][t % 2];
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) {
        const unsigned char* stage = stages + s * S::kStageBytes;
        const uint32_t codes = advance(stages_at, static_cast<int>(s) * S::kStageBytes);
        barrier_wait(full + s, parity);
        multiply_fence();
#pragma unroll
        for (int k = 0; k < S::kChunk / 16; ++k) {
          multiply<T>(d, advance(rows_at, (c * S::kChunk / 16 + k) * (kGroupRows * 32)),
                      advance(codes, k * (kHopperTile * 32)), c + k);
        }
        multiply_commit();
        if (c == S::kChunks - 1) {
          const float bias = reinterpret_cast<const float*>(stage + S::kCodeBytes)[thread];
          biases[bias_at] = fminf(bias, window.highest) + window.shift;
        }
        multiply_wait<0>();
        warpgroup_barrier(1 + group);  // all have read the stage, and the biases are there
        if (thread == 0) barrier_arrive(empty + s);
        if (++s == S::kStages) s = 0, parity ^= 1;
      }
      reduce_tile<EXACT>(d, reinterpret_cast<const float4*>(biases + lane % 4 * kBiasStride), scale, t, columns, best);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      decide<EXACT>(a, *state, block * kHopperRows + own + 8 * i, own + 8 * i, window, best[i]);
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
  a.exact = s.exact != 0;
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
