// The CPU kernels behind plain C signatures: no torch, no Python, no C++ types.
//
// Every function checks nothing that Python has checked already (shapes, ranges, dtypes), never
// throws, and returns a VqStatus; unless it is VQ_OK the results are to be dropped. They do not depend on
// the number of threads.
#pragma once

#include "vq_types.h"

#ifdef __cplusplus
extern "C" {
#endif

enum VqStatus { VQ_OK = 0, VQ_OUT_OF_MEMORY = 1, VQ_INTERRUPTED = 2 };

// What calls that take long ask several times a second, in the thread that made them: whether to end with
// VQ_INTERRUPTED (not 0). To be set before any other call. vq_cpu_ema_update, which works in place, does
// not ask.
void vq_cpu_on_stop_requested(int (*requested)(void));

// A codebook packed for many searches with the metric of `options`, by the instruction set and for the first pass
// of now. It reads the codes' memory, which must stay as it is until it is released.
typedef struct VqPreparedCodebook VqPreparedCodebook;
int vq_cpu_prepare_codebook(const VqCodes* codebook, const VqSearchOptions* options, int threads,
                            VqPreparedCodebook** prepared);
void vq_cpu_release_codebook(VqPreparedCodebook* prepared);  // or null

// indices [batches, rows]. prepared: made of these codes with these options, or null.
int vq_cpu_nearest_code(const VqRows* x, const VqCodes* codebook, VqPreparedCodebook* prepared,
                        const VqSearchOptions* options, int threads, int64_t* indices);

// quantized[n, :] = codebook[indices[n], :].
int vq_cpu_gather_codes(const VqCodes* codebook, const int64_t* indices, const VqRows* quantized,
                        int threads);

// counts [codes], sums [codes, dim]; rows whose index names no code, and with skip_nonfinite those that hold
// NaN or infinity, are left out. Every sum runs over the rows in their order, in float64, rounded once.
int vq_cpu_code_statistics(const VqRows* x, const int64_t* indices, int64_t codes, int skip_nonfinite,
                           int threads, int64_t* counts, float* sums);

// counts is float32 if counts_are_float, else int64.
int vq_cpu_ema_update(float* codebook, float* cluster_size, float* embed_avg, const void* counts,
                      int counts_are_float, const float* sums, int64_t codes, int64_t dim,
                      double one_minus_decay, double eps, int normalize, int threads);

// mask [batches, rows], nonzero where a row counts, or null. prepared: as for vq_cpu_nearest_code.
int vq_cpu_vector_quantize(const VqRows* x, const VqCodes* codebook, VqPreparedCodebook* prepared,
                           const uint8_t* mask, const VqQuantizeOptions* options, int threads,
                           const VqQuantizeResult* result);

// grad_x = estimator(grad_quantized) + loss_grad (x - code). grad_quantized null: zero; loss_grad, the
// gradient of the loss times its scale over the valid rows, null: none. Rows with index -1 are 0; those whose
// index names no code, as something has written to it since, are NaN.
int vq_cpu_vector_quantize_backward(const VqRows* grad_quantized, const float* loss_grad, const VqRows* x,
                                    const VqCodes* codebook, const int64_t* indices, int gradient,
                                    int threads, const VqRows* grad_x);

// --- instruction sets ---
enum VqIsa {
  VQ_ISA_PORTABLE = 0,
  VQ_ISA_NEON,
  VQ_ISA_DOTPROD,  // of 64-bit Arm
  VQ_ISA_I8MM,     // with DOTPROD
  VQ_ISA_AVX2,
  VQ_ISA_AVXVNNI,  // with AVX2, not AVX-512
  VQ_ISA_AVX512,
  VQ_ISA_AVX512VNNI,
  VQ_ISA_AVX512BF16,  // with VNNI
  VQ_ISA_AMXINT8,  // with AMX
  VQ_ISA_AMX,
  VQ_ISA_COUNT
};

const char* vq_cpu_isa_name(int isa);
// 1 if this binary holds kernels for it, if this machine can run it, if it is used without being asked for.
int vq_cpu_isa_compiled(int isa);
int vq_cpu_isa_supported(int isa);
int vq_cpu_isa_automatic(int isa);
// The one in use: the best of all three, or what vq_cpu_use_isa chose. vq_cpu_use_isa(-1) goes back to the
// best; it returns 0 on success and 1 if the instruction set is not both compiled and supported.
int vq_cpu_isa(void);
int vq_cpu_use_isa(int isa);

// --- the first pass of a search ---
enum VqFirstPass {
  VQ_FLOAT32_FIRST = 0,
  VQ_BFLOAT16_FIRST = 1,
  VQ_INT8_FIRST = 2,
  VQ_DIRECT_FIRST = 3,  // float32 over codes as they are given, for a few rows
  VQ_INT16_FIRST = 4,
  VQ_FIRST_PASS_COUNT = 5
};

const char* vq_cpu_first_pass_name(int pass);
// 1 if the instruction set in use has it.
int vq_cpu_first_pass_usable(int pass);
// The one that an exact search with these rows (their number and dimensions) and so many codes begins with.
int vq_cpu_first_pass(const VqRows* x, int64_t codes);
// Multiply-adds of one pass's kind in registers, `rounds` on each thread: how many operations (two each) that was,
// to be timed; 0 without vector instructions for them. The machine's roof.
int64_t vq_cpu_peak(int pass, int threads, int64_t rounds);
// Every search begins with `pass`, -1: with the one that suits it. 0 on success, 1 if it is not usable.
int vq_cpu_use_first_pass(int pass);

#ifdef __cplusplus
}
#endif
