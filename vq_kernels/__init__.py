"""Fused vector quantisation for PyTorch: exact nearest codes, no N x K arrays, one layer to drop in."""

from .backends import available_backends, use_backend
from .functional import *  # noqa: F403
from .functional import __all__ as _operation_names
from .quantizers import *  # noqa: F403
from .quantizers import __all__ as _quantizer_names

__version__ = "0.1.0"

__all__ = ["available_backends", "use_backend"]
__all__ += _operation_names
__all__ += _quantizer_names
