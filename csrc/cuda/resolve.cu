// The last pass: the nearest code, by the contract's own score, of rows that the certificates leave open.
//
// Rows come as a list and are taken in groups of up to 8. A unit of work is a group and a piece of the codes:
// all of them where there are groups enough to fill the device, else so many pieces that there are units
// enough; the last unit of a group merges what the others found, which does not depend on their order.
//
// A warp reads a code together, once for all rows of the group. Squared distances in float32 (their relative
// error is small whatever the offset) rule codes out; the few that are left are scored exactly, a lane each.
// The block that finishes last writes the loss of the whole step.
//
// A lane's work for a code and 8 rows: D / 32 times 8 loads from shared memory and 16 operations, then 9
// shuffles that reduce the 8 sums together.
#include "emit.cuh"
#include "exact.cuh"
#include "interval.cuh"

namespace vq_cuda {
namespace {

constexpr int kGroupRows = kMostGroupRows;
constexpr int kQueue = kWarp;  // candidates of a warp, up to 8 more at a time; a lane scores one
constexpr int kPieceCodes = 64;  // at least
constexpr int64_t kGroupBytes = 64 * 1024;  // of rows in shared memory

struct ResolveShared {
  LossScratch loss;
  int64_t number[kGroupRows];  // of the batch, -1 beyond the group's rows
  int hint[kGroupRows];
  int index[kGroupRows];
  int flag[kGroupRows];
  float squares[kGroupRows];
  RescoreBest best[kWarps][kGroupRows];
  ExactScore queue_score[kWarps][kQueue];
  int queue_code[kWarps][kQueue];
  int queue_row[kWarps][kQueue];
  float queue_lower[kWarps][kQueue];
};

// Sums of 8 values over the warp: lane l gets that of value l / 4.
__device__ inline float sum_of_eight(float (&v)[kGroupRows]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int half = kGroupRows / 2, step = kWarp / 2; half > 0; half /= 2, step /= 2) {
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float give = upper ? v[i] : v[i + half], keep = upper ? v[i + half] : v[i];
      v[i] = keep + __shfl_xor_sync(kAllLanes, give, step);
    }
  }
  v[0] += __shfl_xor_sync(kAllLanes, v[0], 2);
  return v[0] + __shfl_xor_sync(kAllLanes, v[0], 1);
}

// One warp's walk over codes, for all rows of the group. Lane l looks after row l / 4.
template <typename E>
struct Walk {
  const SearchArgs& a;
  ResolveShared* shared;
  const float* x;  // [group_rows, D]
  int warp, lane, row;
  IntervalFactors factors;
  float x_squares;
  float limit = kInfinity;  // the nearest code is within it
  int queued = 0;
  RescoreBest best;  // of row `lane`, in lanes below group_rows

  __device__ Walk(const SearchArgs& args, ResolveShared* s, const float* rows)
      : a(args),
        shared(s),
        x(rows),
        warp(static_cast<int>(threadIdx.x) / kWarp),
        lane(static_cast<int>(threadIdx.x) % kWarp),
        row(lane / 4),
        factors(interval_factors(args.factors, args.dim)),
        x_squares(s->squares[lane / 4]) {}

  __device__ const E* code(int j) const {
    return static_cast<const E*>(a.codebook) + static_cast<int64_t>(j) * a.dim;
  }

  __device__ Interval measure(int j) const {
    const E* e = code(j);
    float sum[kGroupRows] = {};
    float e_squares = 0.0f;
    for (int d = lane; d < a.dim; d += kWarp) {
      const float value = to_float(e[d]);
      if (a.cosine) e_squares = fmaf(value, value, e_squares);
#pragma unroll
      for (int i = 0; i < kGroupRows; ++i) {
        if (i >= a.group_rows) continue;
        const float other = x[i * a.dim + d], difference = other - value;
        sum[i] = a.cosine ? fmaf(-other, value, sum[i]) : fmaf(difference, difference, sum[i]);
      }
    }
    const float total = sum_of_eight(sum);
    if (!a.cosine) return interval_of_distance(factors, total, x_squares);
    const float code_norm = norm_bound(a.factors, warp_sum(e_squares));
    return interval_of_product(factors, total, 1.01f * norm_bound(a.factors, x_squares) * code_norm);
  }

  __device__ void lower_limit(int j) {
    if (a.usable[j]) limit = fminf(limit, measure(j).upper);
  }

  __device__ void visit(int j) {
    if (!a.usable[j]) return;
    const Interval bounds = measure(j);
    const bool candidate = lane % 4 == 0 && row < a.group_rows && shared->number[row] >= 0 &&
                           !(bounds.lower > limit);
    limit = fminf(limit, bounds.upper);
    const unsigned votes = __ballot_sync(kAllLanes, candidate);
    if (candidate) {
      const int place = queued + __popc(votes & ((1u << lane) - 1u));
      shared->queue_code[warp][place] = j;
      shared->queue_row[warp][place] = row;
      shared->queue_lower[warp][place] = bounds.lower;
    }
    queued += __popc(votes);
    if (queued > kQueue - kGroupRows) score_queue();
  }

  __device__ void score_queue() {
    __syncwarp();
    const bool present = lane < queued;
    const int of = present ? shared->queue_row[warp][lane] : 0;
    const float limit_of = __shfl_sync(kAllLanes, limit, 4 * of);
    // The limit may have come down since.
    const bool near = present && !(shared->queue_lower[warp][lane] > limit_of);
    if (near) {
      shared->queue_score[warp][lane] =
          exact_score(x + of * a.dim, code(shared->queue_code[warp][lane]), a.dim, a.cosine);
    } else if (present) {
      shared->queue_row[warp][lane] = -1;
    }
    __syncwarp();
    for (int i = 0; i < queued; ++i) {
      if (shared->queue_row[warp][i] == lane) {
        best.offer(shared->queue_score[warp][i], shared->queue_code[warp][i]);
      }
    }
    queued = 0;
    __syncwarp();
  }
};

// The rows of a group as float32, their numbers, hints and square norms.
template <typename X>
__device__ void load_group(const SearchArgs& a, unsigned rows, unsigned group, ResolveShared* s, float* x) {
  const int tid = static_cast<int>(threadIdx.x), warp = tid / kWarp, lane = tid % kWarp;
  __syncthreads();
  if (tid < kGroupRows) {
    const unsigned at = group * static_cast<unsigned>(a.group_rows) + static_cast<unsigned>(tid);
    const int n = tid < a.group_rows && at < rows ? a.from.rows[at] : -1;
    s->number[tid] = n;
    s->hint[tid] = n >= 0 ? static_cast<int>(a.indices[n]) : 0;
    s->flag[tid] = n >= 0 ? kCertain : kOutside;
    s->squares[tid] = 0.0f;
  }
  __syncthreads();
  for (int r = warp; r < a.group_rows; r += kWarps) {
    const int64_t n = s->number[r];
    const X* row = static_cast<const X*>(a.x.data) + (n >= 0 ? a.x.map.offset(n) : 0);
    float squares = 0.0f;
    for (int d = lane; d < a.dim; d += kWarp) {
      const float value = n >= 0 ? to_float(row[d * a.x.map.strides.dim]) : 0.0f;
      x[r * a.dim + d] = value;
      squares = fmaf(value, value, squares);
    }
    squares = warp_sum(squares);
    if (lane == 0) s->squares[r] = squares;
  }
  __syncthreads();
}

// The best of codes [first, end) for each row of the group, in thread r < group_rows.
template <typename E>
__device__ RescoreBest walk_codes(const SearchArgs& a, ResolveShared* s, const float* x, int first, int end) {
  Walk<E> walk(a, s, x);
  for (int r = 0; r < a.group_rows; ++r) {
    if (s->number[r] >= 0) walk.lower_limit(s->hint[r]);
  }
  for (int j = first + walk.warp; j < end; j += kWarps) walk.visit(j);
  walk.score_queue();
  if (walk.lane < kGroupRows) s->best[walk.warp][walk.lane] = walk.best;
  __syncthreads();
  RescoreBest winner;
  if (static_cast<int>(threadIdx.x) < kGroupRows) {
    for (int w = 0; w < kWarps; ++w) {
      winner.offer(s->best[w][threadIdx.x].score, s->best[w][threadIdx.x].index);
    }
  }
  return winner;
}

// Merges the pieces' bests of a group; false in all but the last unit to arrive.
__device__ inline bool merge_pieces(const SearchArgs& a, unsigned group, unsigned piece, unsigned pieces,
                                    RescoreBest* winner, int* last) {
  const int r = static_cast<int>(threadIdx.x);
  RescoreBest* partial = a.pieces + static_cast<int64_t>(group) * pieces * kGroupRows;
  if (r < kGroupRows) partial[piece * kGroupRows + r] = *winner;
  if (!is_last_block(a.tickets + group, pieces, last)) return false;
  if (r < kGroupRows) {
    for (unsigned p = 0; p < pieces; ++p) {
      const RescoreBest* other = partial + p * kGroupRows + r;
      winner->offer(ExactScore{__ldcg(&other->score.v), __ldcg(&other->score.r)}, __ldcg(&other->index));
    }
  }
  return true;
}

template <typename X>
__device__ void finish_group(const SearchArgs& a, const RescoreBest& winner, ResolveShared* s) {
  const int tid = static_cast<int>(threadIdx.x);
  if (tid < kGroupRows) s->index[tid] = winner.index == RescoreBest::kNone ? 0 : winner.index;
  __syncthreads();
  if (a.loss == nullptr) {
    if (tid < kGroupRows && s->number[tid] >= 0) a.indices[s->number[tid]] = s->index[tid];
    return;
  }
  double squares = 0.0;
  int64_t rows = 0;  // counted by the block that listed them
  const auto number = [&](int r) { return s->number[r]; };
  emit_rows<X, kGroupRows>(a, s->index, s->flag, number, &squares, &rows, a.open_squares);
}

template <typename X>
__global__ void __launch_bounds__(kThreads, 4) resolve_kernel(const __grid_constant__ SearchArgs a) {
  ResolveShared* s = reinterpret_cast<ResolveShared*>(dynamic_shared());
  float* x = reinterpret_cast<float*>(s + 1);  // [group_rows, D]
  const unsigned rows = *a.from.count, width = static_cast<unsigned>(a.group_rows);
  const unsigned groups = (rows + width - 1) / width;
  unsigned pieces = 1;
  if (groups > 0 && groups < gridDim.x) {
    const unsigned most = (static_cast<unsigned>(a.codes) + kPieceCodes - 1) / kPieceCodes;
    pieces = min(gridDim.x / groups, most);
  }
  const int piece_codes = static_cast<int>((static_cast<unsigned>(a.codes) + pieces - 1) / pieces);
  for (unsigned unit = blockIdx.x; unit < groups * pieces; unit += gridDim.x) {
    const unsigned group = unit / pieces, piece = unit % pieces;
    const int first = static_cast<int>(piece) * piece_codes, end = min(first + piece_codes, a.codes);
    load_group<X>(a, rows, group, s, x);
    RescoreBest winner = a.codebook_is_float ? walk_codes<float>(a, s, x, first, end)
                                             : walk_codes<X>(a, s, x, first, end);
    if (pieces > 1 && !merge_pieces(a, group, piece, pieces, &winner, &s->loss.last)) continue;
    finish_group<X>(a, winner, s);
  }
  if (a.loss == nullptr) return;
  if (is_last_block(a.ticket, gridDim.x, &s->loss.last)) write_loss(a, &s->loss);
}

int64_t resolve_bytes(int group_rows, int64_t dim) {
  return static_cast<int64_t>(sizeof(ResolveShared)) + group_rows * dim * 4;
}

}  // namespace

cudaError_t plan_resolve(int x_dtype, int64_t dim, int processors, SearchPlan* plan) {
  plan->group_rows = kGroupRows;
  while (plan->group_rows > 1 && plan->group_rows * dim * 4 > kGroupBytes) plan->group_rows /= 2;
  int resident = 0;
  const cudaError_t error = with_dtype(x_dtype, [&](auto type) {
    return resident_blocks(&resident, resolve_kernel<decltype(type)>, kThreads,
                           resolve_bytes(plan->group_rows, dim));
  });
  plan->resolve_blocks = processors * (resident > 0 ? resident : 1);
  return error;
}

cudaError_t launch_resolve(const SearchArgs& a, const SearchPlan& p, const VqCudaStream& stream) {
  return with_dtype(a.x.dtype, [&](auto type) {
    return launch(resolve_kernel<decltype(type)>, p.resolve_blocks, kThreads,
                  resolve_bytes(p.group_rows, a.dim), stream, false, a);
  });
}

}  // namespace vq_cuda
