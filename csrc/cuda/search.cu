// nearest_code and the fused step: the choice of kernel, the workspace, and two or three launches
// (prepare, search, and the sums of the statistics).
#include "search.cuh"
#include "search_mma.cuh"

namespace vq_cuda {
namespace {

constexpr int kSmallDim = 8;

int64_t matrix_bytes(int products, int row_tiles, int64_t dim, int64_t padded_dim) {
  if (row_tiles == 2) {
    return products == 3   ? matrix_shared_bytes<3, 128>(dim, padded_dim)
           : products == 2 ? matrix_shared_bytes<2, 128>(dim, padded_dim)
                           : matrix_shared_bytes<1, 128>(dim, padded_dim);
  }
  return products == 3   ? matrix_shared_bytes<3, 64>(dim, padded_dim)
         : products == 2 ? matrix_shared_bytes<2, 64>(dim, padded_dim)
                         : matrix_shared_bytes<1, 64>(dim, padded_dim);
}

int products_of(int x_dtype, int codebook_dtype, int precision) {
  if (precision == VQ_FAST) return 1;
  if (x_dtype != VQ_BFLOAT16) return 3;
  return codebook_dtype == VQ_BFLOAT16 ? 1 : 2;
}

// Splits the codes where rows alone would leave multiprocessors idle; a split has at least two tiles.
void split_codes(int64_t rows, int64_t codes, int processors, SearchPlan* plan) {
  const int64_t row_blocks = rows > plan->block_rows ? ceil_div(rows, plan->block_rows) : 1;
  const int64_t tiles = ceil_div(codes, kTileCodes);
  int64_t splits = 2 * static_cast<int64_t>(processors) / row_blocks;
  splits = splits < tiles / 2 ? splits : tiles / 2;
  const int64_t split_tiles = splits > 1 ? ceil_div(tiles, splits) : tiles;
  plan->split_codes = static_cast<int>(split_tiles * kTileCodes);
  plan->splits = static_cast<int>(ceil_div(tiles, split_tiles));
}

cudaError_t make_plan(const VqRows& x, const VqCodes& codebook, int precision, int device,
                      SearchPlan* plan) {
  int major = 0, shared = 0, processors = 0;
  cudaError_t error = device_attribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) {
    error = device_attribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error == cudaSuccess) error = device_attribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  *plan = SearchPlan{};
  plan->method = codebook.dim <= kSmallDim ? SearchPlan::kSmall : SearchPlan::kTile;
  plan->block_rows = codebook.dim <= kSmallDim ? kSmallBlockRows : kTileBlockRows;
  const int64_t padded_dim = round_up(codebook.dim, 16);
  const int products = products_of(x.dtype, codebook.dtype, precision);
  for (int row_tiles = 2; row_tiles >= (padded_dim > kChunk ? 1 : 2); --row_tiles) {
    if (codebook.dim <= kSmallDim || major < 8) break;
    const int64_t bytes = matrix_bytes(products, row_tiles, codebook.dim, padded_dim);
    if (bytes > shared) continue;
    plan->method = SearchPlan::kMatrix;
    plan->products = products;
    plan->row_tiles = row_tiles;
    plan->block_rows = 64 * row_tiles;
    plan->shared_bytes = bytes;
    break;
  }
  split_codes(x.batches * x.rows, codebook.count, processors, plan);
  return cudaSuccess;
}

// n u / (1 - n u). Where n u passes 1/16 the case for outliers (docs/certificate.md) no longer holds, so
// that no row may be certain.
float sum_error(int n, float u) {
  const float error = static_cast<float>(n) * u;
  return error <= 0x1p-4f ? error / (1.0f - error) : kInfinity;
}

// docs/certificate.md derives these: u = 2^-24, and 24 * 2^-23 bounds what one m16n8k16 instruction
// loses relative to the largest partial sum: blocks of two terms or more, all aligned and truncated.
ErrorFactors error_factors(const SearchPlan& plan, int dim, int padded_dim, double bound_scale) {
  const float u = 0x1p-24f, instruction = 24 * 0x1p-23f;
  ErrorFactors f{};
  if (plan.method == SearchPlan::kMatrix) {
    const float steps = static_cast<float>(padded_dim < kChunk ? padded_dim / 16 : kChunk / 16);
    const float chunks = static_cast<float>(ceil_div(padded_dim, kChunk));
    f.product = 1.05f * (steps * instruction + (chunks + 4) * u);
    f.low = 1.05f * static_cast<float>(plan.products - 1) * steps * instruction;
    f.bias = 4 * u;
  } else {
    f.product = sum_error(dim + 8, u);
    f.bias = sum_error(dim + 4, u);  // search_small starts its sum from the bias
  }
  // gamma_{2 D}^2, u = 2^-53, of a sum of 2 D exact products (Ogita, Rump and Oishi 2005).
  f.contract = 1.1f * static_cast<float>(2 * dim + 4) * static_cast<float>(2 * dim + 4) * 0x1p-106f;
  f.product *= 0.25f;  // score_error multiplies the norms by 4
  f.scale = 1.01f * static_cast<float>(bound_scale);  // 1.01 for the rounding of the bound itself
  f.norm = 1.0f + static_cast<float>(dim + 8) * u;
  f.norm_floor = sqrtf(static_cast<float>(padded_dim)) * 0x1p-73f;
  f.floor = static_cast<float>(padded_dim) * 0x1p-120f;
  return f;
}

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
  p.centre = memory.allocate<float>(codebook.dim);
  p.extents = memory.allocate<Extent>(padded_codes / kTileCodes);
  const int64_t blocks = rows > plan.block_rows ? ceil_div(rows, plan.block_rows) : 1;
  if (plan.splits > 1) {
    s.partial = memory.allocate<Best>(plan.splits * blocks * plan.block_rows);
    p.split_tickets = s.split_tickets = memory.allocate<unsigned>(blocks);
    p.split_ticket_count = blocks;
  }
  if (fused) {
    s.block_squares = memory.allocate<double>(blocks);
    s.block_rows = memory.allocate<int64_t>(blocks);
    p.ticket = s.ticket = memory.allocate<unsigned>(1);
  }
  if (statistics) {
    s.statistics.slots = memory.allocate<int32_t>(rows);
    s.statistics.largest = memory.allocate<unsigned>(codebook.count);
    s.statistics.done = memory.allocate<unsigned>(codebook.count);
    s.statistics.accumulators = memory.allocate<unsigned long long>(codebook.count * codebook.dim);
  }
  w.bytes = memory.used();
  s.splits = plan.splits;
  s.split_codes = plan.split_codes;
  s.high = p.high;
  s.low = p.low;
  s.bias = p.bias;
  s.centre = p.centre;
  s.extents = p.extents;
  s.extent_count = static_cast<int>(padded_codes / kTileCodes);
  s.padded_codes = p.padded_codes = static_cast<int>(padded_codes);
  s.padded_dim = p.padded_dim = static_cast<int>(padded_dim);
  return w;
}

cudaError_t launch_search(const SearchArgs& a, const SearchPlan& plan, int dtype,
                          const VqCudaStream& stream) {
  switch (plan.method) {
    case SearchPlan::kSmall:
      return launch_search_small(a, plan, dtype, stream);
    case SearchPlan::kTile:
      return launch_search_tile(a, plan, dtype, stream);
    case SearchPlan::kMatrix:
      break;
  }
  if (dtype == VQ_FLOAT32) return launch_search_mma_f32(a, plan, stream);
  if (dtype == VQ_BFLOAT16) return launch_search_mma_bf16(a, plan, stream);
  return launch_search_mma_f16(a, plan, stream);
}

// result: of the fused step; null for the search alone.
cudaError_t search(const VqRows& x, const VqCodes& codebook, const uint8_t* mask,
                   const VqSearchOptions& options, float loss_weight, int64_t* indices,
                   const VqQuantizeResult* result, void* workspace, int64_t workspace_bytes,
                   const VqCudaStream& stream) {
  const int64_t rows = x.batches * x.rows;
  if (codebook.count < 1 || codebook.count > INT32_MAX - kTileCodes ||
      codebook.dim > INT32_MAX - kTileCodes) {
    return cudaErrorInvalidValue;
  }
  if (rows == 0 && result == nullptr) return cudaSuccess;
  cudaError_t error = select_device(stream.device);
  if (error != cudaSuccess) return error;
  SearchPlan plan;
  error = make_plan(x, codebook, options.precision, stream.device, &plan);
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
  a.cosine = options.metric == VQ_COSINE;
  a.certify = options.precision == VQ_EXACT;
  // bfloat16 rows are not shifted: they would no longer be bfloat16.
  const bool matrix = plan.method == SearchPlan::kMatrix;
  a.shift_rows = !(matrix && x.dtype == VQ_BFLOAT16);
  a.factors = error_factors(plan, a.dim, a.padded_dim, options.bound_scale);
  a.indices = indices;
  if (fused) {
    a.mask = mask;
    a.loss_weight = loss_weight;
    a.quantized = result->quantized.data;
    a.quantized_map = row_map(result->quantized);
    a.loss = result->loss;
    a.valid_rows = result->valid_rows;
    a.statistics.counts = result->counts;
    a.statistics.sums = result->sums;
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
  return vq_cuda::search(*x, *codebook, nullptr, *options, 1.0f, indices, nullptr, workspace,
                         workspace_bytes, stream);
}

int vq_cuda_vector_quantize(const VqRows* x, const VqCodes* codebook, const uint8_t* mask,
                            const VqQuantizeOptions* options, const VqQuantizeResult* result, void* workspace,
                            int64_t workspace_bytes, VqCudaStream stream) {
  return vq_cuda::search(*x, *codebook, mask, options->search, options->loss_weight, result->indices, result,
                         workspace, workspace_bytes, stream);
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
