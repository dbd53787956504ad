"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the operators: the products of the search.

N rows and K codes of D numbers cost 2 N K D, as torch counts a matrix product; gathers, sums and the backward
pass make no products of matrices.
"""

from __future__ import annotations

import sys
from math import prod
from typing import Any


def register_flops(operators: Any) -> None:
    """Tell the counters that are there; they copy the table of formulas when they are made.

    ``torch.utils.flop_counter`` is slow to import, so it is asked only where a user has imported it.
    """
    module = sys.modules.get("torch.utils.flop_counter")
    if module is None:
        return
    formulas = {operators.nearest_code: search_flops, operators.vector_quantize: search_flops}
    for packet, formula in formulas.items():
        if packet not in module.flop_registry:
            module.register_flop_formula(packet)(formula)
    for mode in sys.modules["torch.utils._python_dispatch"]._get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", mode)
        if isinstance(counter, module.FlopCounterMode):
            for packet in formulas:
                counter.flop_registry.setdefault(packet, module.flop_registry[packet])


def search_flops(x_shape: Any, codebook_shape: Any, *args: Any, **kwargs: Any) -> int:
    """2 N K D from the shapes of x and of the codebook ``[K, D]``."""
    return 2 * prod(x_shape) * int(codebook_shape[0])
