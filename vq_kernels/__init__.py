"""Fused vector quantisation for PyTorch: exact nearest codes, no N x K arrays, one layer to drop in."""

from .backends import available_backends, use_backend
from .functional import (
    VectorQuantized,
    code_statistics,
    ema_update_,
    gather_codes,
    nearest_code,
    vector_quantize,
)
from .quantizers import *  # noqa: F403
from .quantizers import __all__ as _quantizer_names

__version__ = "0.1.0"

__all__ = [
    "VectorQuantized",
    "available_backends",
    "code_statistics",
    "ema_update_",
    "gather_codes",
    "nearest_code",
    "use_backend",
    "vector_quantize",
]
__all__ += _quantizer_names
