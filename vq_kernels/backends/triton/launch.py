"""Launches: a kernel that was launched before with like arguments is started again without Triton's binder.

In every launch Triton binds, types and names all arguments anew and compares every constant that a kernel
reads with what it was. With 20 to 60 arguments that takes several times as long as starting the kernel, and
longer than a kernel on few rows runs. Here what Triton specialises a kernel for makes a key, and what it
compiled and launched for a key is from then on started directly. Triton does all else: the first launch of a
key, and every launch in the interpreter, under launch hooks or instrumentation, with arguments of a kind that
:func:`specialise` does not know, or in a version whose launches were not compared with these.

Constants of modules are read when a kernel is compiled; to change one afterwards has no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import Parameter
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# Versions whose specialisation and start of a kernel tests/backends/test_triton_direct.py has compared.
COMPARED_VERSIONS = ("3.6.", "3.7.", "3.8.", "3.9.")

_TENSORS = frozenset((Tensor, Parameter))


class UnknownKindError(TypeError):
    """An argument of a kind whose specialisation is not described here."""


def specialise(args: tuple[Any, ...], key: list[Any]) -> list[Any]:
    """Append to ``key`` what Triton specialises run-time arguments for; return them as a launch takes them.

    That is, of a tensor its dtype and whether its address is a multiple of 16; of an integer whether it is 1,
    whether it is a multiple of 16, and whether it fits 32 bits; a ``tl.constexpr`` or None itself; of a named
    tuple its class and its elements. A launch takes the address of a tensor and all else as it is.

    For example a float32 tensor and ``(View(None, 64),)`` append
    ``[torch.float32, True, View, NoneType, "i32:16"]``: each entry says how many follow, so that different
    arguments never make one key.
    """
    values: list[Any] = []
    for value in args:
        kind = type(value)
        if kind in _TENSORS:
            address = value.data_ptr()
            key.append(value.dtype)
            key.append(address & 15 == 0)
            values.append(address)
            continue
        if kind is int:
            if value == 1:
                key.append("1")
            elif -(2**31) <= value < 2**31:
                key.append("i32" if value & 15 else "i32:16")
            elif -(2**63) <= value < 2**63:
                key.append("i64" if value & 15 else "i64:16")
            else:
                raise UnknownKindError(f"an argument is {value}; accepted: integers of 64 bits")
        elif value is None or kind is float:
            key.append(kind)
        elif kind is tl.constexpr:
            key.append(kind)
            key.append(value.value)
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            key.append(kind)
            value = tuple(specialise(value, key))
        else:
            raise UnknownKindError(f"an argument is a {kind.__name__}; accepted: kinds listed above")
        values.append(value)
    return values


def launch_key(device: int, constants: dict[str, Any]) -> list[Any]:
    """The beginning of a key: the device, and compile-time parameters and options with their names."""
    return [device, len(constants), *constants, *constants.values()]


def _is_set(hook: Any) -> bool:
    """Whether a launch hook does anything: Triton's own default is a chain without calls."""
    return hook is not None and bool(getattr(hook, "calls", True))


def _is_watched() -> bool:
    """Whether something is to see every launch, or changes what is compiled: Triton launches then."""
    runtime = knobs.runtime
    return bool(
        runtime.debug
        or knobs.compilation.instrumentation_mode
        or runtime.add_stages_inspection_hook is not None
        or _is_set(runtime.launch_enter_hook)
        or _is_set(runtime.launch_exit_hook)
    )


class _Compiled(NamedTuple):
    """What starts a kernel."""

    run: Callable[..., None]
    function: int
    metadata: Any
    kernel: Any  # kept, as its code is unloaded with it


class Kernel:
    """A function of ``triton.jit`` that is launched: ``kernel[grid](*arguments, **constants_and_options)``.

    Run-time parameters come first and are given by position, compile-time ones and options of the compiler
    by name. Launches on the current device and its current stream.
    """

    def __init__(self, jit: Any) -> None:
        self.jit = jit
        self._compiled: dict[tuple[Any, ...], _Compiled] = {}
        self._is_known = isinstance(jit, JITFunction) and triton.__version__.startswith(COMPARED_VERSIONS)
        constants = [p.is_constexpr for p in jit.params] if self._is_known else []
        self._run_time = constants.count(False)
        if constants != sorted(constants):
            raise TypeError(f"{jit.__name__} has a compile-time parameter before a run-time one")
        # In the places of the compile-time parameters, which nothing reads any more.
        self._constants = (None,) * constants.count(True)

    @property
    def fn(self) -> Callable[..., None]:
        """The Python function."""
        function: Callable[..., None] = self.jit.fn
        return function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self._launch, grid) if self._is_known else self.jit[grid]

    def _launch(self, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        active = driver.active
        device = active.get_current_device()
        key = launch_key(device, constants)
        try:
            values = specialise(args, key)
        except UnknownKindError:
            self.jit[grid](*args, **constants)
            return
        compiled = self._compiled.get(tuple(key))
        if compiled is None or self.jit.pre_run_hooks or _is_watched():
            kernel = self.jit[grid](*args, **constants)
            if type(kernel) is CompiledKernel and len(args) == self._run_time and not _is_watched():
                self._compiled[tuple(key)] = _Compiled(
                    kernel.run, kernel.function, kernel.packed_metadata, kernel
                )
            return
        compiled.run(
            *grid,
            *(1,) * (3 - len(grid)),
            active.get_current_stream(device),
            compiled.function,
            compiled.metadata,
            None,  # metadata for hooks, the hook before and the one after
            None,
            None,
            *values,
            *self._constants,
        )
