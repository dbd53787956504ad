"""The backends and the choice between them.

Automatic choice takes the first backend of the device's order that works here and serves the
tensors. A backend that was asked for by name either serves the call or raises with the reason:
nothing falls back in silence.
"""

from __future__ import annotations

import functools
import importlib
from types import TracebackType
from typing import cast

from torch import Tensor

from .base import Backend, Operation, QuantizeOptions, QuantizeResult

__all__ = [
    "Backend",
    "Operation",
    "QuantizeOptions",
    "QuantizeResult",
    "available_backends",
    "choose",
    "get_backend",
    "register_backend",
    "use_backend",
]

_MODULES = {
    "native": "vq_kernels.backends.native",
    "triton": "vq_kernels.backends.triton",
    "cuda": "vq_kernels.backends.cuda",
    "reference": "vq_kernels.backends.reference",
}
# The interpreter lets triton serve CPU tensors, for tests: only when asked for by name.
_ORDER = {"cpu": ("native", "reference"), "cuda": ("triton", "cuda", "reference")}

_registered: dict[str, Backend] = {}
_requested: str | None = None


@functools.cache
def _load(name: str) -> Backend:
    module = importlib.import_module(_MODULES[name])
    return cast(Backend, getattr(module, "backend", module))


def get_backend(name: str) -> Backend:
    """The backend called ``name``, whether or not it works here."""
    if name in _registered:
        return _registered[name]
    if name not in _MODULES:
        raise ValueError(f"backend is {name!r}; accepted: None or one of {[*_MODULES, *_registered]}")
    return _load(name)


def register_backend(backend: Backend) -> None:
    """Make ``backend`` known under its name, for call sites that ask for it by that name."""
    if backend.name in _MODULES:
        raise ValueError(f"backend name {backend.name!r} is taken by a backend of this package")
    _registered[backend.name] = backend


def available_backends() -> dict[str, str | None]:
    """Every backend's name with None where it works on this machine, else the reason why not."""
    return {name: get_backend(name).unavailable_reason() for name in [*_MODULES, *_registered]}


class use_backend:
    """Ask for one backend for all following calls of this process, or inside a ``with`` block.

    ``use_backend(None)`` returns to automatic choice. An explicit ``backend=`` argument of an
    operation comes first. Raises ValueError if the name is unknown or the backend does not work here.
    """

    def __init__(self, name: str | None) -> None:
        global _requested
        if name is not None and (reason := get_backend(name).unavailable_reason()) is not None:
            raise ValueError(f"backend {name!r} is not available: {reason}")
        self._previous = _requested
        _requested = name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _requested
        _requested = self._previous


def choose(operation: Operation, requested: str | None, x: Tensor, codebook: Tensor | None = None) -> Backend:
    """The backend that serves ``operation`` on ``x`` (and ``codebook``).

    Raises:
        ValueError: the one that was asked for, by argument or by :class:`use_backend`, cannot.
    """
    name = requested if requested is not None else _requested
    if name is not None:
        backend = get_backend(name)
        reason = backend.unavailable_reason() or backend.unsupported_reason(operation, x, codebook)
        if reason is not None:
            raise ValueError(f"backend {name!r} cannot serve this call: {reason}")
        return backend
    for candidate in _ORDER.get(x.device.type, ("reference",)):
        backend = get_backend(candidate)
        if (
            backend.unavailable_reason() is None
            and backend.unsupported_reason(operation, x, codebook) is None
        ):
            return backend
    return get_backend("reference")
