"""The definition of every operation in plain PyTorch, one operation a file.

Written to be read, used by tests and as fallback. The contract is in ``base.py``; this folder imports
torch and nothing of ours, so that it can be read, and trusted, alone.
"""

from __future__ import annotations

from torch import Tensor

from .ema import ema_update_
from .gather import gather_codes
from .quantize import QuantizeOptions, vector_quantize, vector_quantize_backward
from .search import nearest_code
from .statistics import code_statistics

__all__ = [
    "code_statistics",
    "ema_update_",
    "gather_codes",
    "name",
    "nearest_code",
    "quantize_options",
    "unavailable_reason",
    "unsupported_reason",
    "vector_quantize",
    "vector_quantize_backward",
]

name = "reference"
quantize_options = frozenset(QuantizeOptions._fields)


def unavailable_reason() -> str | None:
    """None: torch is all that it needs."""
    return None


def unsupported_reason(operation: str, x: Tensor, codebook: Tensor | None = None) -> str | None:
    """None: it has every operation and serves every device and dtype."""
    return None
