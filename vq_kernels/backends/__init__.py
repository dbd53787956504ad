"""The backends and the choice between them.

Automatic choice takes the first backend of the device's order that works here and serves the
tensors. A backend that was asked for by name either serves the call or raises with the reason:
nothing falls back in silence.
"""

from __future__ import annotations

import functools
import importlib
from contextvars import ContextVar
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
    "requested_backend",
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

# Of each thread and each task of asyncio: what use_backend asks for, what the blocks around asked for,
# and the object whose call was the last to ask.
_requested: ContextVar[str | None] = ContextVar("requested", default=None)
_outer: ContextVar[tuple[str | None, ...]] = ContextVar("outer", default=())
_called: ContextVar[use_backend | None] = ContextVar("called", default=None)


@functools.cache
def _load(name: str) -> Backend:
    module = importlib.import_module(_MODULES[name])
    return cast(Backend, getattr(module, "backend", module))


def get_backend(name: str) -> Backend:
    """The backend called ``name``, whether or not it works here."""
    if isinstance(name, str) and name in _registered:  # what is no text may not even be hashable
        return _registered[name]
    if not isinstance(name, str) or name not in _MODULES:
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
    """Ask for one backend for the following calls of this thread or task, or inside a ``with`` block.

    ``use_backend(None)`` returns to automatic choice. An explicit ``backend=`` argument of an operation
    comes first. A backward pass takes the backend of its forward pass, wherever and in whichever thread
    it runs; a compiled function chooses anew in each of its passes. Blocks nest, and one object may be
    entered again, in other threads too. Raises ValueError if the name is unknown or the backend does not
    work here.
    """

    def __init__(self, name: str | None) -> None:
        if name is not None and (reason := get_backend(name).unavailable_reason()) is not None:
            raise ValueError(f"backend {name!r} is not available: {reason}")
        self._name = name
        self._before = _requested.get()
        _requested.set(name)
        _called.set(self)

    def __enter__(self) -> use_backend:
        # In ``with use_backend(...)`` the call has just asked for it: the block gives back what was before.
        outer = self._before if _called.get() is self else _requested.get()
        _called.set(None)
        _outer.set((*_outer.get(), outer))
        _requested.set(self._name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        *others, outer = _outer.get()
        _outer.set(tuple(others))
        _requested.set(outer)


def requested_backend() -> str | None:
    """The name that :class:`use_backend` asks for here, None for automatic choice."""
    return _requested.get()


def choose(
    operation: Operation,
    requested: str | None,
    x: Tensor,
    codebook: Tensor | None = None,
    options: QuantizeOptions | None = None,
) -> Backend:
    """The backend that serves ``operation`` on ``x`` (and ``codebook``), the fused one with ``options``.

    Raises:
        ValueError: the one that was asked for, by argument or by :class:`use_backend`, cannot.
    """
    name = requested if requested is not None else _requested.get()
    if name is not None:
        backend = get_backend(name)
        reason = (
            backend.unavailable_reason()
            or _missing_kernel(backend, operation, options)
            or backend.unsupported_reason(operation, x, codebook)
        )
        if reason is not None:
            raise ValueError(f"backend {name!r} cannot serve this call: {reason}")
        return backend
    for candidate in _ORDER.get(x.device.type, ("reference",)):
        backend = get_backend(candidate)
        if (
            backend.unavailable_reason() is None
            and _missing_kernel(backend, operation, options) is None
            and backend.unsupported_reason(operation, x, codebook) is None
        ):
            return backend
    return get_backend("reference")


def _missing_kernel(backend: Backend, operation: Operation, options: QuantizeOptions | None) -> str | None:
    """One sentence saying which operation, or option set to more than its default, the backend has not."""
    if not hasattr(backend, operation):
        return f"it has no {operation}"
    if options is None:
        return None
    for name in _options_beyond(backend.quantize_options):
        value, default = getattr(options, name), QuantizeOptions._field_defaults[name]
        if value != default:
            return f"{name} is {value!r}; accepted: {default!r}, as it has no kernel for others"
    return None


@functools.cache
def _options_beyond(heeded: frozenset[str]) -> tuple[str, ...]:
    return tuple(name for name in QuantizeOptions._fields if name not in heeded)
