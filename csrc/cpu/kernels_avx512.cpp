// The kernels of CPUs with AVX-512.
#include "cpu/simd_avx512.h"

#include "cpu/kernel_table.h"

namespace vq_cpu {

constexpr Kernels kernels_avx512 = kernel_table();

}  // namespace vq_cpu
