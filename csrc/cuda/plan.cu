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
    p.resident = most = resident;
    *plan = p;
  }
  if (most > 0 || !p.deep) return cudaSuccess;
  p.streamed = true;
  p.row_tiles = 1;
  p.block_rows = kStreamedRows;
  p.shared_bytes = p.products == 3   ? streamed_shared_bytes<3>()
                   : p.products == 2 ? streamed_shared_bytes<2>()
                                     : streamed_shared_bytes<1>();
  if (p.shared_bytes > shared_limit) return cudaSuccess;
  const cudaError_t error = resident_blocks(&p.resident, matrix_kernel(x.dtype, p), kThreads, p.shared_bytes);
  if (error == cudaSuccess && p.resident > 0) *plan = p;
  return error;
}

// Splits the codes so that the last of the waves in which `places` blocks run at a time is not mostly empty: a
// wave takes as long as the tiles of its split, and about kFixedTiles for rows read and results merged. A split
// has at least two tiles; beyond one wave there are at most four, for each keeps 12 bytes a row.
void split_codes(int64_t rows, int64_t codes, int64_t places, SearchPlan* plan) {
  constexpr int64_t kFixedTiles = 4, kMostSplits = 4;
  const int64_t row_blocks = rows > plan->block_rows ? ceil_div(rows, plan->block_rows) : 1;
  const int64_t tiles = ceil_div(codes, kTileCodes), fill = places / row_blocks;
  const int64_t most = fill > kMostSplits ? fill : kMostSplits;
  int64_t best_tiles = tiles, best_time = INT64_MAX;
  for (int64_t splits = 1; splits == 1 || (splits <= most && 2 * splits <= tiles); ++splits) {
    const int64_t split_tiles = ceil_div(tiles, splits);
    const int64_t time = ceil_div(row_blocks * splits, places) * (split_tiles + kFixedTiles);
    if (time >= best_time) continue;
    best_time = time;
    best_tiles = split_tiles;
  }
  plan->split_codes = static_cast<int>(best_tiles * kTileCodes);
  plan->splits = static_cast<int>(ceil_div(tiles, best_tiles));
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
  plan->resident = codebook.dim <= kSmallDim ? kSmallResident : kTileResident;
  if (codebook.dim > kSmallDim && major >= 8) {
    error = plan_matrix(x, codebook, precision, shared, plan);
    if (error != cudaSuccess) return error;
  }
  split_codes(x.batches * x.rows, codebook.count, static_cast<int64_t>(processors) * plan->resident, plan);
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
