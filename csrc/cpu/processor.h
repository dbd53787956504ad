// What the machine can run: instructions of the processor whose registers the operating system saves.
#pragma once

namespace vq_cpu {

bool has_neon();
bool has_dotprod();
bool has_i8mm();       // with dotprod
bool has_avx2();       // with FMA and F16C
bool has_avxvnni();    // with AVX2
bool has_avx512();      // F, BW, DQ, VL
bool has_avx512vnni();
bool has_avx512bf16();  // with VNNI
// With all of these. The first call asks the system for the tile registers.
bool has_amx();
bool has_amxint8();  // with AMX

}  // namespace vq_cpu
