// Which search kernels serve a call, with how many rows a block, and how the codes are divided.
#include "search.cuh"
#include "search_mma.cuh"

namespace vq_cuda {
namespace {

constexpr int kSmallDim = 8;
// From this D on a search of more than one product begins with one over all rows; below, codes lie so densely that one
// product leaves too many open (vq_kernels/backends/triton/plan.py).
constexpr int64_t kCascadeDim = 32;

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

// Products of a score that take its operands for more than their first 16-bit part.
int products_of(int x_dtype, int codebook_dtype, int precision) {
  if (precision == VQ_FAST) return 1;
  if (x_dtype == VQ_FLOAT32) return 3;
  return codebook_dtype == x_dtype ? 1 : 2;
}

SearchKernel matrix_kernel(const SearchPass& p) {
  if (p.bf16) return search_mma_bf16(p);
  return p.products == 1 ? search_mma_half(p) : search_mma_half_parts(p);
}

// The matrix kernel of a pass, if a block of it fits: with 128 rows where so two blocks are resident on a
// multiprocessor (the codes then come out of L2 half as often), else with 64 rows if more are. Rows of which no
// block fits are streamed. `resident` is 0 where nothing fits.
cudaError_t plan_pass(int64_t dim, int shared_limit, SearchPass* pass) {
  SearchPass p = *pass;
  const int64_t padded_dim = round_up(dim, 16);
  p.deep = padded_dim > kChunk;
  pass->resident = 0;
  for (p.row_tiles = 2; p.row_tiles >= (p.deep ? 1 : 2) && pass->resident < 2; --p.row_tiles) {
    p.block_rows = 64 * p.row_tiles;
    p.shared_bytes = matrix_bytes(p.products, p.row_tiles, padded_dim);
    if (p.shared_bytes > shared_limit) continue;
    const cudaError_t error = resident_blocks(&p.resident, matrix_kernel(p), kThreads, p.shared_bytes);
    if (error != cudaSuccess) return error;
    if (p.resident > pass->resident) *pass = p;
  }
  if (pass->resident > 0 || !p.deep) return cudaSuccess;
  p.streamed = true;
  p.row_tiles = 1;
  p.block_rows = kStreamedRows;
  p.shared_bytes = p.products == 3   ? streamed_shared_bytes<3>()
                   : p.products == 2 ? streamed_shared_bytes<2>()
                                     : streamed_shared_bytes<1>();
  if (p.shared_bytes > shared_limit) return cudaSuccess;
  const cudaError_t error = resident_blocks(&p.resident, matrix_kernel(p), kThreads, p.shared_bytes);
  if (error == cudaSuccess && p.resident > 0) *pass = p;
  return error;
}

// Both passes on tensor cores, where their blocks fit.
cudaError_t plan_matrix(const VqRows& x, const VqCodes& codebook, int precision, int shared_limit, SearchPlan* plan) {
  const bool exact = precision == VQ_EXACT;
  const int products = products_of(x.dtype, codebook.dtype, precision);
  const bool split = x.dtype == VQ_FLOAT32 || codebook.dtype != x.dtype;
  SearchPass all{};
  all.products = products;
  all.bf16 = !split && x.dtype == VQ_BFLOAT16;
  all.epilogue = precision == VQ_FAST ? kPackedBest : exact && products == 1 ? kPackedScores : kWholeScores;
  // Rounding is all the error that scores of unsplit operands have.
  all.chunked = products > 1 || (exact && !split);
  SearchPass first = all;
  const bool cascade = exact && products > 1 && codebook.dim >= kCascadeDim;
  if (cascade) {
    first.products = 1;
    first.epilogue = kPackedScores;
    first.chunked = false;
  }
  cudaError_t error = plan_pass(codebook.dim, shared_limit, &first);
  if (error != cudaSuccess || first.resident == 0) return error;
  if (cascade) {
    error = plan_pass(codebook.dim, shared_limit, &all);
    if (error != cudaSuccess || all.resident == 0) return error;
  }
  plan->method = SearchPlan::kMatrix;
  plan->first = first;
  plan->listed = all;
  plan->cascade = cascade;
  plan->split = split;
  // 16-bit rows stay as they are: a centred one would need a second part.
  plan->centred_rows = x.dtype == VQ_FLOAT32;
  return cudaSuccess;
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
  const bool small = codebook.dim <= kSmallDim;
  plan->method = small ? SearchPlan::kSmall : SearchPlan::kTile;
  plan->first.block_rows = small ? kSmallBlockRows : kTileBlockRows;
  plan->first.resident = small ? kSmallResident : kTileResident;
  plan->centred_rows = true;
  if (!small && major >= 8) {
    error = plan_matrix(x, codebook, precision, shared, plan);
    if (error != cudaSuccess) return error;
  }
  const int64_t rows = x.batches * x.rows, tiles = ceil_div(codebook.count, kTileCodes);
  const int64_t blocks = rows > plan->first.block_rows ? ceil_div(rows, plan->first.block_rows) : 1;
  const Division division = divide_codes(static_cast<unsigned>(blocks), static_cast<unsigned>(tiles),
                                         static_cast<unsigned>(processors * plan->first.resident));
  plan->splits = static_cast<int>(division.pieces);
  plan->split_codes = static_cast<int>(division.piece_tiles) * kTileCodes;
  if (plan->cascade) {
    // As many as run at a time, or as there could be units of work.
    const int64_t places = static_cast<int64_t>(processors) * plan->listed.resident;
    const int64_t units = ceil_div(rows, plan->listed.block_rows) * (tiles > 3 ? tiles / 2 : 1);
    plan->listed_blocks = static_cast<int>(units < 1 ? 1 : units < places ? units : places);
  }
  return plan->certify ? plan_resolve(x.dtype, codebook.dim, processors, plan) : cudaSuccess;
}

cudaError_t launch_search(const SearchArgs& a, const SearchPlan& plan, const VqCudaStream& stream) {
  switch (plan.method) {
    case SearchPlan::kSmall:
      return launch_search_small(a, plan, stream);
    case SearchPlan::kTile:
      return launch_search_tile(a, plan, stream);
    case SearchPlan::kMatrix:
      return launch(matrix_kernel(plan.first), search_blocks(a, plan), kThreads, plan.first.shared_bytes, stream,
                    false, a);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_listed(const SearchArgs& a, const SearchPlan& plan, const VqCudaStream& stream) {
  return launch(matrix_kernel(plan.listed), plan.listed_blocks, kThreads, plan.listed.shared_bytes, stream, false, a);
}

}  // namespace vq_cuda
