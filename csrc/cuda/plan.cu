// Which search kernel serves a call, with how many rows a block, and how the codes are divided.
#include "search.cuh"
#include "search_mma.cuh"

namespace vq_cuda {
namespace {

constexpr int kSmallDim = 8;

int64_t matrix_bytes(int products, int row_tiles, int64_t padded_dim) {
  if (row_tiles == 2) {
    return products == 3   ? matrix_shared_bytes<3, 128>(padded_dim)
           : products == 2 ? matrix_shared_bytes<2, 128>(padded_dim)
                           : matrix_shared_bytes<1, 128>(padded_dim);
  }
  return products == 3   ? matrix_shared_bytes<3, 64>(padded_dim)
         : products == 2 ? matrix_shared_bytes<2, 64>(padded_dim)
                         : matrix_shared_bytes<1, 64>(padded_dim);
}

int products_of(int x_dtype, int codebook_dtype, int precision) {
  if (precision == VQ_FAST) return 1;
  if (x_dtype != VQ_BFLOAT16) return 3;
  return codebook_dtype == VQ_BFLOAT16 ? 1 : 2;
}

SearchKernel matrix_kernel(int dtype, const SearchPlan& p) {
  if (dtype == VQ_FLOAT32) return search_mma_f32(p);
  return dtype == VQ_BFLOAT16 ? search_mma_bf16(p) : search_mma_f16(p);
}

// Takes the matrix kernel if a block of it fits: with 128 rows where so two blocks are resident on a
// multiprocessor (the codes then come out of L2 half as often), else with 64 rows if more are. Rows of which no
// block fits are streamed.
cudaError_t plan_matrix(const VqRows& x, const VqCodes& codebook, int precision, int shared_limit,
                        SearchPlan* plan) {
  SearchPlan p = *plan;
  const int64_t padded_dim = round_up(codebook.dim, 16);
  p.method = SearchPlan::kMatrix;
  p.products = products_of(x.dtype, codebook.dtype, precision);
  p.deep = padded_dim > kChunk;
  int most = 0;
  for (p.row_tiles = 2; p.row_tiles >= (p.deep ? 1 : 2) && most < 2; --p.row_tiles) {
    p.block_rows = 64 * p.row_tiles;
    p.shared_bytes = matrix_bytes(p.products, p.row_tiles, padded_dim);
    if (p.shared_bytes > shared_limit) continue;
    int resident = 0;
    const cudaError_t error = resident_blocks(&resident, matrix_kernel(x.dtype, p), kThreads, p.shared_bytes);
    if (error != cudaSuccess) return error;
    if (resident <= most) continue;
    most = resident;
    *plan = p;
  }
  p.streamed = true;
  p.row_tiles = 1;
  p.block_rows = kStreamedRows;
  p.shared_bytes = p.products == 3   ? streamed_shared_bytes<3>()
                   : p.products == 2 ? streamed_shared_bytes<2>()
                                     : streamed_shared_bytes<1>();
  if (most == 0 && p.deep && p.shared_bytes <= shared_limit) *plan = p;
  return cudaSuccess;
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

}  // namespace

cudaError_t make_plan(const VqRows& x, const VqCodes& codebook, int precision, int device,
                      SearchPlan* plan) {
  int major = 0, shared = 0, processors = 0;
  cudaError_t error = select_device(device);
  if (error == cudaSuccess) error = device_attribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) {
    error = device_attribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error == cudaSuccess) error = device_attribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  *plan = SearchPlan{};
  plan->certify = precision == VQ_EXACT;
  plan->method = codebook.dim <= kSmallDim ? SearchPlan::kSmall : SearchPlan::kTile;
  plan->block_rows = codebook.dim <= kSmallDim ? kSmallBlockRows : kTileBlockRows;
  if (codebook.dim > kSmallDim && major >= 8) {
    error = plan_matrix(x, codebook, precision, shared, plan);
    if (error != cudaSuccess) return error;
  }
  split_codes(x.batches * x.rows, codebook.count, processors, plan);
  return plan->certify ? plan_resolve(x.dtype, codebook.dim, processors, plan) : cudaSuccess;
}

cudaError_t launch_search(const SearchArgs& a, const SearchPlan& plan, int dtype,
                          const VqCudaStream& stream) {
  switch (plan.method) {
    case SearchPlan::kSmall:
      return launch_search_small(a, plan, dtype, stream);
    case SearchPlan::kTile:
      return launch_search_tile(a, plan, dtype, stream);
    case SearchPlan::kMatrix:
      return launch(matrix_kernel(dtype, plan), search_blocks(a, plan), kThreads, plan.shared_bytes, stream,
                    false, a);
  }
  return cudaErrorInvalidValue;
}

}  // namespace vq_cuda
