// The kernels of any CPU.
#include "cpu/simd_portable.h"

#include "cpu/kernel_table.h"

namespace vq_cpu {

constexpr Kernels kernels_portable = kernel_table();

}  // namespace vq_cpu
