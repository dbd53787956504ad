// nearest_code and the fused step: the workspace, and two to four launches (prepare, search, for exact results
// the second pass, and the sums of the statistics).
#include "exact.cuh"
#include "search.cuh"

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
  int64_t bytes = 0;
};

Workspace lay_out_workspace(void* base, const SearchPlan& plan, const VqRows& x, const VqCodes& codebook,
                            bool fused, bool statistics) {
  Workspace w;
  const int64_t padded_codes = round_up(codebook.count, kTileCodes);
  const bool split = plan.method == SearchPlan::kMatrix;
  const int64_t padded_dim = split ? round_up(codebook.dim, 16) : codebook.dim;
  const int64_t rows = x.batches * x.rows;
  WorkspaceAllocator memory(base);
  PrepareArgs& p = w.prepare;
  SearchArgs& s = w.search;
  p.high = split ? memory.allocate<__nv_bfloat16>(padded_codes * padded_dim) : nullptr;
  p.low = split && plan.products > 1 ? memory.allocate<__nv_bfloat16>(padded_codes * padded_dim) : nullptr;
  p.bias = memory.allocate<float>(padded_codes);
  p.usable = memory.allocate<uint8_t>(codebook.count);
  if (plan.certify) {
    p.table_size = 1;
    while (p.table_size < 2 * codebook.count && p.table_size < 1u << 31) p.table_size *= 2;
    p.table = memory.allocate<unsigned>(p.table_size);
  }
  p.centre = memory.allocate<float>(codebook.dim);
  p.extents = memory.allocate<Extent>(padded_codes / kTileCodes);
  p.extent = memory.allocate<Extent>(1);
  const int64_t blocks = rows > plan.block_rows ? ceil_div(rows, plan.block_rows) : 1;
  // Counters side by side, so that they are cleared together.
  const int64_t split_tickets = plan.splits > 1 ? blocks : 0, tickets = plan.certify ? plan.resolve_blocks : 0;
  p.counter_count = 3 + split_tickets + tickets;
  p.counters = memory.allocate<unsigned>(p.counter_count);
  s.ticket = p.counters;
  s.open.groups = p.counters + 1;
  p.last_ticket = p.counters + 2;
  s.split_tickets = p.counters + 3;
  s.open.tickets = s.split_tickets + split_tickets;
  if (plan.splits > 1) s.partial = memory.allocate<Best>(plan.splits * blocks * plan.block_rows);
  if (plan.certify) {
    s.open.group_rows = plan.group_rows;
    s.open.rows = memory.allocate<int32_t>(blocks * plan.block_rows);
    s.open.of_block = memory.allocate<OpenGroups>(blocks);
    s.open.partial = memory.allocate<RescoreBest>(static_cast<int64_t>(plan.resolve_blocks) * kMostGroupRows);
  }
  if (fused) {
    s.block_squares = memory.allocate<double>(blocks);
    s.block_rows = memory.allocate<int64_t>(blocks);
    if (plan.certify) s.open.squares = memory.allocate<double>(blocks * (plan.block_rows / plan.group_rows));
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
  s.centre = p.centre;
  s.extent = p.extent;
  s.padded_codes = p.padded_codes = static_cast<int>(padded_codes);
  s.padded_dim = p.padded_dim = static_cast<int>(padded_dim);
  return w;
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
  a.x = x.data;
  a.x_map = row_map(x);
  a.rows = rows;
  a.dim = static_cast<int>(codebook.dim);
  a.codes = static_cast<int>(codebook.count);
  a.lanes_over_rows = rows_are_contiguous(x);
  a.codebook = codebook.data;
  a.codebook_is_float = codebook.dtype == VQ_FLOAT32;
  a.cosine = options.search.metric == VQ_COSINE;
  a.certify = plan.certify;
  // bfloat16 rows are not shifted: they would no longer be bfloat16.
  const bool matrix = plan.method == SearchPlan::kMatrix;
  a.shift_rows = !(matrix && x.dtype == VQ_BFLOAT16);
  a.factors = error_factors(matrix ? plan.products : 0, a.dim, a.padded_dim, options.search.bound_scale);
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
  PrepareArgs& p = w.prepare;
  p.codebook = codebook.data;
  p.dim = a.dim;
  p.codes = a.codes;
  p.cosine = a.cosine;
  p.shift_rows = a.shift_rows;
  // Exact bfloat16 codes are not shifted either, for the same reason.
  p.centre_codes = !a.cosine && !(matrix && plan.products == 1 && codebook.dtype == VQ_BFLOAT16);
  p.statistics = a.statistics;

  error = launch_prepare(p, codebook.dtype, stream);
  if (error != cudaSuccess) return error;
  error = launch_search(a, plan, x.dtype, stream);
  if (error == cudaSuccess && plan.certify) error = launch_resolve(a, plan, x.dtype, stream);
  if (error != cudaSuccess || !statistics || rows == 0) return error;
  return launch_sums(a.x, x.dtype, a.x_map, rows, a.dim, a.lanes_over_rows, a.statistics, stream);
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
