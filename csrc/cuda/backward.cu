// The gradient of the fused step for x, in one pass over the rows:
//
//     loss_grad = grad_loss * scale / valid_rows,   grad_x = estimator(g) + loss_grad (x - e)
//
// estimator is the identity, or the rotation trick (arXiv:2410.06424, section 4.2), whose row sums are
// taken first; the row is then in cache. Reads g and x, writes out; e comes from the cached codebook.
#include "common.cuh"

namespace vq_cuda {
namespace {

constexpr int kBackwardThreads = 256;
constexpr int kBackwardRows = 64;  // of a block with a warp a row; with a thread a row, its threads
constexpr int kBatch = 4;
constexpr float kSmallestNorm = 1e-6f;

struct BackwardArgs {
  const void* grad;  // or null
  RowMap grad_map;
  const float* grad_loss;  // or null
  const void* x;
  RowMap x_map;
  const void* codebook;
  int64_t codes;
  bool codebook_is_float;
  const int64_t* indices;
  const int64_t* valid_rows;
  float scale;
  bool rotation;
  void* out;
  RowMap out_map;
  int64_t rows;
  int dim;
  bool lanes_over_rows;
  int vector_lanes;  // that share a row of 16-byte vectors, a power of two up to a warp
  int block_rows;
};

template <typename X, typename E>
struct Row {
  const X* grad;
  const X* x;
  const E* code;
  X* out;
  int64_t grad_step, x_step, out_step;

  __device__ float g(int d) const { return grad == nullptr ? 0.0f : to_float(grad[d * grad_step]); }
  __device__ float value(int d) const { return to_float(x[d * x_step]); }
  __device__ float e(int d) const { return to_float(code[d]); }
};

// LANES threads share a row; 1 or the whole warp.
template <int LANES>
__device__ float row_sum(float v) {
  return LANES == 1 ? v : warp_sum(v);
}

template <int LANES, typename X, typename E>
__device__ void rotate_row(const Row<X, E>& row, int dim, int lane, float loss_grad) {
  float x_squares = 0.0f, e_squares = 0.0f;
  for (int d = lane; d < dim; d += LANES) {
    x_squares = fmaf(row.value(d), row.value(d), x_squares);
    e_squares = fmaf(row.e(d), row.e(d), e_squares);
  }
  const float x_norm = fmaxf(sqrtf(row_sum<LANES>(x_squares)), kSmallestNorm);
  const float e_length = sqrtf(row_sum<LANES>(e_squares));
  const float e_norm = fmaxf(e_length, kSmallestNorm);
  float w_squares = 0.0f, gw = 0.0f, gq = 0.0f;
  for (int d = lane; d < dim; d += LANES) {
    const float q = row.e(d) / e_norm, w = row.value(d) / x_norm + q;
    w_squares = fmaf(w, w, w_squares);
    gw = fmaf(row.g(d), w, gw);
    gq = fmaf(row.g(d), q, gq);
  }
  const float w_norm = fmaxf(sqrtf(row_sum<LANES>(w_squares)), kSmallestNorm);
  const float along_w = 2.0f * (row_sum<LANES>(gw) / w_norm) / w_norm;
  const float along_u = 2.0f * row_sum<LANES>(gq);
  const float rescale = e_length / x_norm;
  for (int d = lane; d < dim; d += LANES) {
    const float x = row.value(d), e = row.e(d), u = x / x_norm, w = u + e / e_norm;
    const float estimator_grad = rescale * (row.g(d) - along_w * w + along_u * u);
    row.out[d * row.out_step] = from_float<X>(fmaf(loss_grad, x - e, estimator_grad));
  }
}

template <typename X, typename E>
__device__ Row<X, E> row_at(const BackwardArgs& a, int64_t n, int64_t index) {
  return Row<X, E>{a.grad == nullptr ? nullptr : static_cast<const X*>(a.grad) + a.grad_map.offset(n),
                   static_cast<const X*>(a.x) + a.x_map.offset(n),
                   static_cast<const E*>(a.codebook) + index * a.dim,
                   static_cast<X*>(a.out) + a.out_map.offset(n),
                   a.grad_map.strides.dim,
                   a.x_map.strides.dim,
                   a.out_map.strides.dim};
}

__device__ inline bool names_a_code(const BackwardArgs& a, int64_t index) {
  return static_cast<uint64_t>(index) < static_cast<uint64_t>(a.codes);
}

// The gradient of a row without a code: zero for -1, which the mask left out. Any other index was written
// since the forward pass; NaN shows it.
__device__ inline float gradient_without_code(int64_t index) {
  return index == -1 ? 0.0f : __uint_as_float(0x7fc00000u);
}

// kBatch rows at once, so that their loads are under way together.
template <int LANES, typename X, typename E>
__device__ void pass_through_rows(const BackwardArgs& a, int64_t first_row, int lane, float loss_grad) {
  constexpr int kStride = kBackwardThreads / LANES;  // from one of a thread's rows to the next
  for (int r = static_cast<int>(threadIdx.x) / LANES; r < a.block_rows; r += kBatch * kStride) {
    Row<X, E> row[kBatch];
    bool present[kBatch], counts[kBatch];
    float otherwise[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int64_t n = first_row + r + i * kStride;
      present[i] = r + i * kStride < a.block_rows && n < a.rows;
      const int64_t index = present[i] ? a.indices[n] : -1;
      counts[i] = names_a_code(a, index);
      otherwise[i] = gradient_without_code(index);
      row[i] = row_at<X, E>(a, present[i] ? n : 0, counts[i] ? index : 0);
    }
    for (int d = lane; d < a.dim; d += LANES) {
      float g[kBatch], difference[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        g[i] = counts[i] ? row[i].g(d) : 0.0f;
        difference[i] = counts[i] && a.grad_loss != nullptr ? row[i].value(d) - row[i].e(d) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const float result = a.grad_loss != nullptr ? fmaf(loss_grad, difference[i], g[i]) : g[i];
        if (present[i]) row[i].out[d * row[i].out_step] = from_float<X>(counts[i] ? result : otherwise[i]);
      }
    }
  }
}

template <int LANES, typename X, typename E>
__device__ void rotate_rows(const BackwardArgs& a, int64_t first_row, int lane, float loss_grad) {
  for (int r = static_cast<int>(threadIdx.x) / LANES; r < a.block_rows; r += kBackwardThreads / LANES) {
    const int64_t n = first_row + r;
    if (n >= a.rows) break;
    const int64_t index = a.indices[n];
    const bool counts = names_a_code(a, index);
    const Row<X, E> row = row_at<X, E>(a, n, counts ? index : 0);
    if (counts) {
      rotate_row<LANES>(row, a.dim, lane, loss_grad);
    } else {
      const X value = from_float<X>(gradient_without_code(index));
      for (int d = lane; d < a.dim; d += LANES) row.out[d * row.out_step] = value;
    }
  }
}

template <int LANES, typename X, typename E>
__device__ void backward_rows(const BackwardArgs& a, float loss_grad) {
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * a.block_rows;
  const int lane = static_cast<int>(threadIdx.x) % LANES;
  if (a.rotation && a.grad != nullptr) {
    rotate_rows<LANES, X, E>(a, first_row, lane, loss_grad);
  } else {
    pass_through_rows<LANES, X, E>(a, first_row, lane, loss_grad);
  }
}

template <int LANES, typename X>
__device__ void backward_codes(const BackwardArgs& a, float loss_grad) {
  if (a.codebook_is_float) {
    backward_rows<LANES, X, float>(a, loss_grad);
  } else {
    backward_rows<LANES, X, X>(a, loss_grad);
  }
}

__device__ inline float loss_gradient(const BackwardArgs& a) {
  if (a.grad_loss == nullptr) return 0.0f;
  const int64_t valid = *a.valid_rows > 0 ? *a.valid_rows : 1;
  return *a.grad_loss * a.scale / static_cast<float>(valid);
}

template <typename X>
__global__ void __launch_bounds__(kBackwardThreads) backward_kernel(const __grid_constant__ BackwardArgs a) {
  const float loss_grad = loss_gradient(a);
  if (a.lanes_over_rows) {
    backward_codes<1, X>(a, loss_grad);
  } else {
    backward_codes<kWarp, X>(a, loss_grad);
  }
}

constexpr int kVectorBatch = 2;  // rows at once of a thread

template <typename T, int COUNT>
struct alignas(16) Vector {
  T v[COUNT];
};

// Straight through rows that are vectors, 16 bytes at a time, with as many lanes for a row as it has vectors.
template <typename X, typename E>
__global__ void __launch_bounds__(kBackwardThreads, 3) backward_vectors_kernel(const __grid_constant__ BackwardArgs a) {
  constexpr int kCount = 16 / sizeof(X), kBatch = kVectorBatch;
  using XVector = Vector<X, kCount>;
  using EVector = Vector<E, kCount>;
  const int lane = static_cast<int>(threadIdx.x) % a.vector_lanes;
  const int stride = kBackwardThreads / a.vector_lanes;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * a.block_rows;
  const float loss_grad = loss_gradient(a);
  const bool moves_x = a.grad_loss != nullptr;
  Row<X, E> row[kBatch];
  bool present[kBatch], counts[kBatch];
  float otherwise[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const int64_t n = first_row + static_cast<int>(threadIdx.x) / a.vector_lanes + i * stride;
    present[i] = n < a.rows;
    const int64_t index = present[i] ? a.indices[n] : -1;
    counts[i] = names_a_code(a, index);
    otherwise[i] = gradient_without_code(index);
    row[i] = row_at<X, E>(a, present[i] ? n : 0, counts[i] ? index : 0);
  }
  for (int d = lane * kCount; d < a.dim; d += a.vector_lanes * kCount) {
    XVector g[kBatch] = {}, x[kBatch] = {};
    EVector e[kBatch] = {};
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (!counts[i]) continue;
      if (row[i].grad != nullptr) g[i] = *reinterpret_cast<const XVector*>(row[i].grad + d);
      if (moves_x) x[i] = *reinterpret_cast<const XVector*>(row[i].x + d);
      if (moves_x) e[i] = *reinterpret_cast<const EVector*>(row[i].code + d);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (!present[i]) continue;
      XVector result;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const float gradient = to_float(g[i].v[j]);
        const float moved = fmaf(loss_grad, to_float(x[i].v[j]) - to_float(e[i].v[j]), gradient);
        result.v[j] = from_float<X>(!counts[i] ? otherwise[i] : moves_x ? moved : gradient);
      }
      *reinterpret_cast<XVector*>(row[i].out + d) = result;
    }
  }
}

}  // namespace
}  // namespace vq_cuda

extern "C" int vq_cuda_vector_quantize_backward(const VqRows* grad_quantized, const float* grad_loss,
                                                const VqRows* x, const VqCodes* codebook,
                                                const int64_t* indices, const int64_t* valid_rows,
                                                float scale, int gradient, const VqRows* grad_x,
                                                VqCudaStream stream) {
  using namespace vq_cuda;
  BackwardArgs a{};
  a.rows = x->batches * x->rows;
  if (a.rows == 0) return cudaSuccess;
  const cudaError_t error = select_device(stream.device);
  if (error != cudaSuccess) return error;
  if (grad_quantized != nullptr) {
    a.grad = grad_quantized->data;
    a.grad_map = row_map(*grad_quantized);
  }
  a.grad_loss = grad_loss;
  a.x = x->data;
  a.x_map = row_map(*x);
  a.codebook = codebook->data;
  a.codes = codebook->count;
  a.codebook_is_float = codebook->dtype == VQ_FLOAT32;
  a.indices = indices;
  a.valid_rows = valid_rows;
  a.scale = scale;
  a.rotation = gradient == VQ_ROTATION_TRICK;
  a.out = grad_x->data;
  a.out_map = row_map(*grad_x);
  a.dim = static_cast<int>(x->dim);
  a.lanes_over_rows = rows_are_contiguous(*x);
  a.block_rows = a.lanes_over_rows ? kBackwardThreads : kBackwardRows;
  return with_dtype(x->dtype, [&](auto type) {
    using X = decltype(type);
    constexpr int kCount = 16 / sizeof(X);
    const bool vectors = rows_are_vectors<kCount>(*x) && rows_are_vectors<kCount>(*grad_x) &&
                         (grad_quantized == nullptr || rows_are_vectors<kCount>(*grad_quantized)) &&
                         reinterpret_cast<uintptr_t>(a.codebook) % 16 == 0;
    auto kernel = backward_kernel<X>;
    if (vectors && !(a.rotation && a.grad != nullptr)) {
      for (a.vector_lanes = 1; a.vector_lanes < kWarp && a.vector_lanes * kCount < a.dim;) a.vector_lanes *= 2;
      a.block_rows = kBackwardThreads / a.vector_lanes * kVectorBatch;
      kernel = a.codebook_is_float ? backward_vectors_kernel<X, float> : backward_vectors_kernel<X, X>;
    }
    return launch(kernel, ceil_div(a.rows, a.block_rows), kBackwardThreads, 0, stream, false, a);
  });
}
