// The instruction sets, with the kernels of each, and the choice between them.
#include "cpu/narrow.h"
#include "cpu/processor.h"

// NEON(table) and so on: its address, null where the compiler does not know the instruction set.
#ifdef VQ_HAVE_NEON
#define NEON(table) &table
#else
#define NEON(table) nullptr
#endif
#ifdef VQ_HAVE_DOTPROD
#define DOTPROD(table) &table
#else
#define DOTPROD(table) nullptr
#endif
#ifdef VQ_HAVE_I8MM
#define I8MM(table) &table
#else
#define I8MM(table) nullptr
#endif
#ifdef VQ_HAVE_AVX2
#define AVX2(table) &table
#else
#define AVX2(table) nullptr
#endif
#ifdef VQ_HAVE_AVXVNNI
#define AVXVNNI(table) &table
#else
#define AVXVNNI(table) nullptr
#endif
#ifdef VQ_HAVE_AVX512
#define AVX512(table) &table
#else
#define AVX512(table) nullptr
#endif
#ifdef VQ_HAVE_AVX512VNNI
#define AVX512VNNI(table) &table
#else
#define AVX512VNNI(table) nullptr
#endif
#ifdef VQ_HAVE_AVX512BF16
#define AVX512BF16(table) &table
#else
#define AVX512BF16(table) nullptr
#endif
#ifdef VQ_HAVE_AMXINT8
#define AMXINT8(table) &table
#else
#define AMXINT8(table) nullptr
#endif
#ifdef VQ_HAVE_AMX
#define AMX(table) &table
#else
#define AMX(table) nullptr
#endif

namespace vq_cpu {
namespace {

bool always() { return true; }

constexpr bool both(const void* a, const void* b) { return a && b; }

struct InstructionSet {
  const char* name;
  bool (*on_machine)();
  // Chosen without VQ_ISA. Not until a processor, and not an emulator alone, has run its tests.
  bool automatic;
  bool compiled;
  const Kernels* kernels;
  const NarrowKernels *int8 = nullptr, *bfloat16 = nullptr;
  const MatrixKernels* matrix = nullptr;
  const NarrowKernels* int16 = nullptr;
};

constexpr const Kernels *kNeon = NEON(kernels_neon), *kAvx2 = AVX2(kernels_avx2), *kAvx512 = AVX512(kernels_avx512);
constexpr const NarrowKernels *kDotprod = DOTPROD(kernels_int8_dotprod), *kI8mm = I8MM(kernels_int8_i8mm);
constexpr const NarrowKernels *kInt8 = AVX2(kernels_int8_avx2), *kInt16 = AVX2(kernels_int16_avx2);
constexpr const NarrowKernels *kAvxVnni = AVXVNNI(kernels_int8_avxvnni);
constexpr const NarrowKernels *kVnni = AVX512VNNI(kernels_int8_avx512vnni);
constexpr const NarrowKernels *kBf16 = AVX512BF16(kernels_bfloat16_avx512bf16);
constexpr const NarrowKernels* kAmxInt8 = AMXINT8(kernels_int8_amxint8);
constexpr const MatrixKernels* kAmx = AMX(kernels_amx);

// As VqIsa; the last that can be chosen is the best.
const InstructionSet kSets[VQ_ISA_COUNT] = {
    {"portable", always, true, true, &kernels_portable},
    {"neon", has_neon, true, both(kNeon, kNeon), kNeon},
    {"dotprod", has_dotprod, false, both(kNeon, kDotprod), kNeon, kDotprod},
    {"i8mm", has_i8mm, false, both(kNeon, kI8mm), kNeon, kI8mm},
    {"avx2", has_avx2, true, both(kAvx2, kInt8) && both(kAvx2, kInt16), kAvx2, kInt8, nullptr, nullptr, kInt16},
    {"avxvnni", has_avxvnni, true, both(kAvx2, kAvxVnni), kAvx2, kAvxVnni},
    {"avx512", has_avx512, true, both(kAvx512, kAvx512), kAvx512},
    {"avx512vnni", has_avx512vnni, true, both(kAvx512, kVnni), kAvx512, kVnni},
    {"avx512bf16", has_avx512bf16, true, both(kAvx512, kBf16) && both(kAvx512, kVnni), kAvx512, kVnni, kBf16},
    {"amxint8", has_amxint8, true, both(kAvx512, kAmxInt8), kAvx512, kAmxInt8, kBf16},
    {"amx", has_amx, true, both(kAvx512, kAmx), kAvx512, kVnni, kBf16, kAmx},
};

int best_isa() {
  for (int isa = VQ_ISA_COUNT - 1; isa > VQ_ISA_PORTABLE; --isa)
    if (kSets[isa].automatic && vq_cpu_isa_compiled(isa) && vq_cpu_isa_supported(isa)) return isa;
  return VQ_ISA_PORTABLE;
}

int chosen = -1;

const InstructionSet& in_use() { return kSets[vq_cpu_isa()]; }

}  // namespace

const Kernels* kernels_in_use() { return in_use().kernels; }
const MatrixKernels* matrix_kernels_in_use() { return in_use().matrix; }
const NarrowKernels* int8_kernels_in_use() { return in_use().int8; }
const NarrowKernels* int16_kernels_in_use() { return in_use().int16; }
const NarrowKernels* bfloat16_kernels_in_use() { return in_use().bfloat16; }

}  // namespace vq_cpu

extern "C" const char* vq_cpu_isa_name(int isa) { return vq_cpu::kSets[isa].name; }

extern "C" int vq_cpu_isa_compiled(int isa) { return vq_cpu::kSets[isa].compiled; }

extern "C" int vq_cpu_isa_automatic(int isa) { return vq_cpu::kSets[isa].automatic; }

extern "C" int vq_cpu_isa_supported(int isa) {
  struct Supported {
    bool values[VQ_ISA_COUNT];
    Supported() {
      for (int i = 0; i < VQ_ISA_COUNT; ++i) values[i] = vq_cpu::kSets[i].on_machine();
    }
  };
  static const Supported supported;
  return supported.values[isa];
}

extern "C" int vq_cpu_isa(void) {
  static const int best = vq_cpu::best_isa();
  return vq_cpu::chosen >= 0 ? vq_cpu::chosen : best;
}

extern "C" int vq_cpu_use_isa(int isa) {
  if (isa >= VQ_ISA_COUNT) return 1;
  if (isa >= 0 && !(vq_cpu_isa_compiled(isa) && vq_cpu_isa_supported(isa))) return 1;
  vq_cpu::chosen = isa;
  return 0;
}
