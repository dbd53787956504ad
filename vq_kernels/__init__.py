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
from .quantizers import FusedVectorQuantizer, QuantizerOutput, convert_state_dict

__version__ = "0.1.0"

__all__ = [
    "FusedVectorQuantizer",
    "QuantizerOutput",
    "VectorQuantized",
    "available_backends",
    "code_statistics",
    "convert_state_dict",
    "ema_update_",
    "gather_codes",
    "nearest_code",
    "use_backend",
    "vector_quantize",
]
