// The CPU kernels behind plain C signatures: no torch, no Python, no C++ types.
//
// Every function checks nothing that Python has checked already (shapes, ranges, dtypes), never
// throws, and returns VQ_OK or VQ_OUT_OF_MEMORY. Results do not depend on the number of threads.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum VqStatus { VQ_OK = 0, VQ_OUT_OF_MEMORY = 1 };
enum VqDtype { VQ_F32 = 0, VQ_BF16 = 1, VQ_F16 = 2 };
enum VqMetric { VQ_L2 = 0, VQ_COSINE = 1 };
enum VqPrecision { VQ_EXACT = 0, VQ_HIGH = 1, VQ_FAST = 2 };
enum VqGradient { VQ_STRAIGHT_THROUGH = 0, VQ_ROTATION_TRICK = 1 };

// [b, m, d] with strides in elements; row r is (r / m, r % m).
typedef struct {
  void* data;
  int64_t b, m, d;
  int64_t stride_b, stride_m, stride_d;
  int32_t dtype;
} VqRows;

// [k, d], contiguous.
typedef struct {
  const void* data;
  int64_t k, d;
  int32_t dtype;
} VqCodes;

// indices [b, m].
int vq_cpu_nearest_code(const VqRows* x, const VqCodes* codes, int metric, int precision, int threads,
                        int64_t* indices);

// out[r, :] = codes[indices[r], :].
int vq_cpu_gather_codes(const VqCodes* codes, const int64_t* indices, const VqRows* out, int threads);

// counts [k], sums [k, d]; rows with a negative index, and with skip_nonfinite those that hold NaN or
// infinity, are left out. Every sum runs over the rows in their order, in float64, rounded once.
int vq_cpu_code_statistics(const VqRows* x, const int64_t* indices, int64_t k, int skip_nonfinite,
                           int threads, int64_t* counts, float* sums);

// weight = 1 - decay. counts_dtype: 0 int64, 1 float32.
int vq_cpu_ema_update(float* codebook, float* cluster_size, float* embed_avg, const void* counts,
                      int counts_dtype, const float* sums, int64_t k, int64_t d, double weight, double eps,
                      int normalize, int threads);

// mask [b, m] or null; counts [k] and sums [k, d] or null.
int vq_cpu_vector_quantize(const VqRows* x, const VqCodes* codes, const uint8_t* mask, int metric,
                           int precision, int threads, const VqRows* out, int64_t* indices, float* mse,
                           int64_t* valid_rows, int64_t* counts, float* sums);

// grad null: zero. pull = grad_loss * scale / valid_rows.
int vq_cpu_vector_quantize_backward(const VqRows* grad, const VqRows* x, const VqCodes* codes,
                                    const int64_t* indices, float pull, int use_pull, int gradient,
                                    int threads, const VqRows* out);

// --- instruction sets ---
enum VqIsa { VQ_ISA_PORTABLE = 0, VQ_ISA_AVX2 = 1, VQ_ISA_AVX512 = 2, VQ_ISA_AMX = 3, VQ_ISA_COUNT = 4 };

const char* vq_cpu_isa_name(int isa);
// 1 if this binary holds kernels for it, if this machine can run it.
int vq_cpu_isa_compiled(int isa);
int vq_cpu_isa_supported(int isa);
// The one in use: the best of both, or what vq_cpu_use_isa chose. vq_cpu_use_isa(-1) goes back to the
// best; it returns 0 on success and 1 if the instruction set is not both compiled and supported.
int vq_cpu_isa(void);
int vq_cpu_use_isa(int isa);

// Multiplies the error bounds that "exact" rests on: for the test that they are needed. 1 to go back.
void vq_cpu_scale_bound(double factor);

#ifdef __cplusplus
}
#endif
