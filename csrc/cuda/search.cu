// nearest_code and the fused step: the workspace, and two to five launches (prepare, search, for exact results
// the pass over the rows that it lists and the last one, and the sums of the statistics).
#include "exact.cuh"
#include "mma_tiles.cuh"

namespace vq_cuda {
namespace {

// Cuts a block of device memory into arrays; with a null base it only counts.
class WorkspaceAllocator {
 public:
  explicit WorkspaceAllocator(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <typename T>
  T* allocate(int64_t count) {
    T* p = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 256);
    return p;
  }
  int64_t used() const { return used_; }

 private:
  unsigned char* base_;
  int64_t used_ = 0;
};

struct Workspace {
  PrepareArgs prepare{};
  SearchArgs search{};
  // Of the pass over listed rows, where there is one.
  OpenList listed{};
  Best* listed_partial = nullptr;
  unsigned* listed_tickets = nullptr;
  int64_t bytes = 0;
  int64_t counters_at = 0;  // bytes before the counters, which begin with the lengths of both lists
};

// Counters that every plan has: lengths of the lists, tickets of the last block that searches and that prepares.
enum Counter : int { kOpenCount, kStillOpenCount, kLossTicket, kPrepareTicket, kCounters };

// Units of a pass over listed rows whose codes are divided, at most: of up to twice as many blocks of rows as the grid
// has blocks there are at most four pieces (share_of).
int64_t divided_units(const SearchPlan& plan) {
  return plan.cascade ? 8 * static_cast<int64_t>(plan.listed_blocks) : 0;
}

Workspace lay_out_workspace(void* base, const SearchPlan& plan, const VqRows& x, const VqCodes& codebook,
                            bool fused, bool statistics) {
  Workspace w;
  const int64_t padded_codes = round_up(codebook.count, kTileCodes);
  const bool parts = plan.method == SearchPlan::kMatrix;
  const int64_t padded_dim = parts ? round_up(codebook.dim, 16) : codebook.dim;
  const int64_t rows = x.batches * x.rows;
  const bool second = (plan.cascade ? plan.listed : plan.first).products > 1;
  WorkspaceAllocator memory(base);
  PrepareArgs& p = w.prepare;
  SearchArgs& s = w.search;
  p.high = parts ? memory.allocate<uint16_t>(padded_codes * padded_dim) : nullptr;
  p.low = parts && second ? memory.allocate<uint16_t>(padded_codes * padded_dim) : nullptr;
  p.bias = memory.allocate<float>(padded_codes);
  p.usable = memory.allocate<uint8_t>(codebook.count);
  if (plan.certify) {
    p.table_size = 1;
    while (p.table_size < 2 * codebook.count && p.table_size < 1u << 31) p.table_size *= 2;
    p.table = memory.allocate<unsigned>(p.table_size);
  }
  p.centre = memory.allocate<float>(codebook.dim);
  p.block_extremes = memory.allocate<Extremes>(padded_codes / kTileCodes);
  p.extremes = memory.allocate<Extremes>(1);
  const int64_t blocks = rows > plan.first.block_rows ? ceil_div(rows, plan.first.block_rows) : 1;
  // Counters side by side, so that they are cleared together; sums of 64 bits behind the even number of the first.
  const int64_t split_tickets = plan.splits > 1 ? blocks : 0, listed_tickets = divided_units(plan);
  const int64_t sums = plan.certify ? 2 * kSquareSums : 0, tickets = plan.certify ? plan.resolve_blocks : 0;
  p.counter_count = kCounters + sums + split_tickets + listed_tickets + tickets;
  w.counters_at = memory.used();
  p.counters = memory.allocate<unsigned>(p.counter_count);
  p.last_ticket = p.counters + kPrepareTicket;
  s.ticket = p.counters + kLossTicket;
  s.open_squares = reinterpret_cast<unsigned long long*>(p.counters + kCounters);
  s.split_tickets = p.counters + kCounters + sums;
  w.listed_tickets = s.split_tickets + split_tickets;
  s.tickets = w.listed_tickets + listed_tickets;
  if (plan.splits > 1) s.partial = memory.allocate<Best>(plan.splits * blocks * plan.first.block_rows);
  if (plan.certify) {
    s.group_rows = plan.group_rows;
    s.to = OpenList{memory.allocate<int32_t>(rows), p.counters + kOpenCount};
    s.pieces = memory.allocate<RescoreBest>(static_cast<int64_t>(plan.resolve_blocks) * kMostGroupRows);
  }
  if (plan.cascade) {
    w.listed = OpenList{memory.allocate<int32_t>(rows), p.counters + kStillOpenCount};
    w.listed_partial = memory.allocate<Best>(divided_units(plan) * plan.listed.block_rows);
  }
  if (fused) {
    s.block_squares = memory.allocate<double>(blocks);
    s.block_rows = memory.allocate<int64_t>(blocks);
  }
  if (statistics) {
    s.statistics.slots = memory.allocate<int32_t>(rows);
    s.statistics.largest = memory.allocate<unsigned>(codebook.count);
    s.statistics.done = memory.allocate<unsigned>(codebook.count);
    s.statistics.accumulators = memory.allocate<unsigned long long>(codebook.count * codebook.dim);
  }
  w.bytes = memory.used();
  s.row_blocks = static_cast<int>(blocks);
  s.splits = plan.splits;
  s.split_codes = plan.split_codes;
  s.high = p.high;
  s.low = p.low;
  s.bias = p.bias;
  s.usable = p.usable;
  s.extremes = p.extremes;
  s.padded_codes = p.padded_codes = static_cast<int>(padded_codes);
  s.padded_dim = p.padded_dim = static_cast<int>(padded_dim);
  return w;
}

// What certifies the scores of a pass.
void set_bound(const SearchPlan& plan, const SearchPass& pass, double bound_scale, SearchArgs* a) {
  if (plan.method != SearchPlan::kMatrix) return;
  a->bound = scaled_bound(pass.products, pass.chunked, plan.split, !a->cosine, a->dim, a->padded_dim, bound_scale);
  a->packing = static_cast<float>(bound_scale) *
               ((pass.epilogue == kPackedScores ? packing_error(kColumnBits) : 0.0f) + 0x1p-22f);
}

// The passes over the rows, one after the other.
cudaError_t launch_passes(const SearchPlan& plan, const Workspace& w, double bound_scale,
                          const VqCudaStream& stream) {
  SearchArgs a = w.search;
  set_bound(plan, plan.first, bound_scale, &a);
  cudaError_t error = launch_search(a, plan, stream);
  if (error != cudaSuccess || !plan.certify) return error;
  a.from = a.to;
  if (plan.cascade) {
    a.to = w.listed;
    a.partial = w.listed_partial;
    a.split_tickets = w.listed_tickets;
    set_bound(plan, plan.listed, bound_scale, &a);
    error = launch_listed(a, plan, stream);
    if (error != cudaSuccess) return error;
    a.from = a.to;
  }
  return launch_resolve(a, plan, stream);
}

// result: of the fused step; null for the search alone.
cudaError_t search(const VqRows& x, const VqCodes& codebook, const uint8_t* mask,
                   const VqQuantizeOptions& options, int64_t* indices, const VqQuantizeResult* result,
                   void* workspace, int64_t workspace_bytes, const VqCudaStream& stream) {
  const int64_t rows = x.batches * x.rows;
  if (codebook.count < 1 || codebook.count > INT32_MAX - kTileCodes ||
      codebook.dim > INT32_MAX - kTileCodes || rows > kMostRows) {
    return cudaErrorInvalidValue;
  }
  if (rows == 0 && result == nullptr) return cudaSuccess;
  SearchPlan plan;
  cudaError_t error = make_plan(x, codebook, options.search.precision, stream.device, &plan);
  if (error != cudaSuccess) return error;
  const bool fused = result != nullptr, statistics = fused && result->counts != nullptr;
  Workspace w = lay_out_workspace(workspace, plan, x, codebook, fused, statistics);
  if (workspace == nullptr || w.bytes > workspace_bytes) return cudaErrorInvalidValue;

  SearchArgs& a = w.search;
  PrepareArgs& p = w.prepare;
  a.cosine = options.search.metric == VQ_COSINE;
  const bool parts = plan.method == SearchPlan::kMatrix;
  a.x = row_source(x, plan.centred_rows && !(parts && a.cosine), p.centre);
  a.rows = rows;
  a.dim = static_cast<int>(codebook.dim);
  a.codes = static_cast<int>(codebook.count);
  a.lanes_over_rows = rows_are_contiguous(x);
  a.codebook = codebook.data;
  a.codebook_is_float = codebook.dtype == VQ_FLOAT32;
  a.certify = plan.certify;
  a.factors = error_factors(a.dim, options.search.bound_scale);
  a.indices = indices;
  if (fused) {
    a.mask = mask;
    a.options = options;
    a.quantized = result->quantized.data;
    a.quantized_map = row_map(result->quantized);
    a.loss = result->loss;
    a.valid_rows = result->valid_rows;
    a.statistics.counts = result->counts;
    a.statistics.sums = result->sums;
    if (options.sum_differences) a.statistics.codes = codebook.data;
    a.statistics.codes_are_float = a.codebook_is_float;
    w.prepare.codebook_copy = result->codebook_copy;
  }
  p.codebook = codebook.data;
  p.dim = a.dim;
  p.codes = a.codes;
  p.cosine = a.cosine;
  p.split = plan.split;
  p.bf16 = plan.first.bf16;
  p.rows_are_centred = a.x.centred;
  // Codes that are not split are not centred either: they would no longer fit one part.
  p.centre_codes = !a.cosine && (plan.split || !parts);
  p.statistics = a.statistics;

  error = launch_prepare(p, codebook.dtype, stream);
  if (error == cudaSuccess) error = launch_passes(plan, w, options.search.bound_scale, stream);
  if (error != cudaSuccess || !statistics || rows == 0) return error;
  return launch_sums(x.data, x.dtype, a.x.map, rows, a.dim, a.lanes_over_rows, a.statistics, stream);
}

}  // namespace
}  // namespace vq_cuda

extern "C" {

int vq_cuda_search_workspace(const VqRows* x, const VqCodes* codebook, int precision, int fused,
                             int statistics, int device, int64_t* bytes) {
  vq_cuda::SearchPlan plan;
  const cudaError_t error = vq_cuda::make_plan(*x, *codebook, precision, device, &plan);
  if (error == cudaSuccess) {
    *bytes = vq_cuda::lay_out_workspace(nullptr, plan, *x, *codebook, fused != 0, statistics != 0).bytes;
  }
  return error;
}

int vq_cuda_open_counts(const VqRows* x, const VqCodes* codebook, int precision, int fused, int statistics, int device,
                        int64_t* bytes) {
  vq_cuda::SearchPlan plan;
  const cudaError_t error = vq_cuda::make_plan(*x, *codebook, precision, device, &plan);
  if (error == cudaSuccess) {
    *bytes = vq_cuda::lay_out_workspace(nullptr, plan, *x, *codebook, fused != 0, statistics != 0).counters_at;
  }
  return error;
}

int vq_cuda_nearest_code(const VqRows* x, const VqCodes* codebook, const VqSearchOptions* options,
                         int64_t* indices, void* workspace, int64_t workspace_bytes, VqCudaStream stream) {
  VqQuantizeOptions quantize = {};
  quantize.search = *options;
  return vq_cuda::search(*x, *codebook, nullptr, quantize, indices, nullptr, workspace, workspace_bytes,
                         stream);
}

int vq_cuda_vector_quantize(const VqRows* x, const VqCodes* codebook, const uint8_t* mask,
                            const VqQuantizeOptions* options, const VqQuantizeResult* result, void* workspace,
                            int64_t workspace_bytes, VqCudaStream stream) {
  return vq_cuda::search(*x, *codebook, mask, *options, result->indices, result, workspace,
                         workspace_bytes, stream);
}

int vq_cuda_device_capability(int device, int* major, int* minor) {
  const cudaError_t error = vq_cuda::device_attribute(major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) return error;
  return vq_cuda::device_attribute(minor, cudaDevAttrComputeCapabilityMinor, device);
}

const char* vq_cuda_error_name(int error) {
  return cudaGetErrorName(static_cast<cudaError_t>(error));
}
const char* vq_cuda_error_text(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // extern "C"
