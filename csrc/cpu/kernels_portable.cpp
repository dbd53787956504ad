// The kernel table of any CPU.
#include "cpu/simd_portable.h"

#include "cpu/codes_body.h"
#include "cpu/exact_body.h"
#include "cpu/rows_body.h"
#include "cpu/search_body.h"

extern const VqKernels vq_kernels_portable = {
    V::W,
    V::VECTORS,
    V::PANEL,
    load_rows,
    store_rows,
    pack_tile,
    sweep_any<false>,
    sweep_any<true>,
    exact_scan,
    inspect_codes,
    pack_code,
    score_rows,
    quantize_rows,
    add_rows,
    backward_rows,
    ema_row,
};
