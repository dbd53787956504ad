"""How an operator is registered, and the eager path around the dispatcher.

Registered with ``torch.library.Library`` (an order of magnitude less overhead per call than
``custom_op``). The backend is chosen inside the implementation, at run time, so that tracing never sees
it. Names, positions and the order of results are part of every exported program: schemas only grow at
the end, by arguments that have a default.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from .flops import register_flops

_P = ParamSpec("_P")
_R = TypeVar("_R")

NAMESPACE = "vq_kernels"
_operators = getattr(torch.ops, NAMESPACE)
_SCHEMA_TYPES = {bool: "bool", int: "int", float: "float", str: "str", str | None: "str?"}


def define(schema: str, implementation: Callable[..., object], fake: Callable[..., object]) -> Any:
    """Register an operator and return what calls it through PyTorch's dispatcher.

    Args:
        schema: in PyTorch's language, beginning with the operator's name.
        implementation: for every device; it may not be seen through, and has no gradient.
        fake: shapes, dtypes and strides of the results, without data.
    """
    name = schema.partition("(")[0]
    if hasattr(_operators, name):
        return _registered_before(name, schema)
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    library.define(schema)
    library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    # Operators live as long as the process, whichever module objects are dropped: programs hold them.
    _operators.__dict__.setdefault("_libraries", []).append(library)
    return getattr(_operators, name).default


def _registered_before(name: str, schema: str) -> Any:
    """The operator that an earlier import registered: a reloaded or packaged copy shares it."""
    overload = getattr(_operators, name).default
    if overload._schema != torch._C.parse_schema(f"{NAMESPACE}::{schema}"):
        raise RuntimeError(
            f"the operator {NAMESPACE}::{name} of another version is loaded in this process, "
            f"{overload._schema}; accepted: {schema}"
        )
    return overload


def operator(
    schema: str, fake: Callable[_P, _R], check_dispatched: Callable[..., None] | None = None
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Make an operator of a function: called with plain tensors it runs at once, else through the dispatcher.

    ``check_dispatched`` looks at the arguments of the latter calls, which other programs can make.

    For example ``nearest_code(x, codebook, "l2", "exact", -1, None)`` with x ``[2, 5, 8]`` runs a
    backend's search directly; inside ``torch.compile`` the same call becomes a node of the graph.
    """

    def register(implementation: Callable[_P, _R]) -> Callable[_P, _R]:
        def dispatched(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            check_memory(*args)
            if check_dispatched is not None:
                check_dispatched(*args, **kwargs)
            return implementation(*args, **kwargs)

        dispatch = define(schema, dispatched, fake)

        @functools.wraps(implementation)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if is_plain(*args):
                check_memory(*args)
                with torch.no_grad():
                    return implementation(*args, **kwargs)
            result: _R = dispatch(*args, **kwargs)
            return result

        return call

    return register


def options_schema(options: type[NamedTuple]) -> str:
    """The arguments of a schema that the fields of a class of options are: types, names and defaults.

    For example ``str metric, bool statistics, str gradient="straight_through"``.
    """
    defaults: dict[str, object] = options._field_defaults
    types = get_type_hints(options)
    arguments = []
    for name in options._fields:
        default = ""
        if name in defaults:
            value = defaults[name]
            default = f'="{value}"' if isinstance(value, str) else f"={value}"
        arguments.append(f"{_SCHEMA_TYPES[types[name]]} {name}{default}")
    return ", ".join(arguments)


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether an autograd Function is to see the call: for a backward pass, or to refuse forward mode.

    The operators themselves would pass forward-mode derivatives on as zeros.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return True
    if torch.compiler.is_compiling():
        _refuse_transforms()
        return False
    return forward_ad._current_level >= 0


def _refuse_transforms() -> None:
    """NotImplementedError where a graph is made inside ``torch.func.grad`` and its like.

    The compiler says of no tensor there that it needs a gradient, and would take an operator into its graph
    that has none: zeros came out.
    """
    levels = torch._C._functorch.get_interpreter_stack() or []
    transforms = torch._C._functorch.TransformType
    if any(level.key() in (transforms.Grad, transforms.Jvp) for level in levels):
        raise NotImplementedError(
            "torch.func.grad or its like is called inside torch.compile on an operation of vq_kernels, whose "
            "gradient the compiler would lose; accepted: torch.func.grad of what is compiled, or the "
            "transform left out of the graph (torch.compiler.disable)"
        )


# What torch.compiler.assume_constant_result sets, without its import of the compiler: run once a graph.
_refuse_transforms._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_memory(*args: object) -> None:
    """Raise ValueError for a tensor whose storage was freed: a kernel would read where nothing is."""
    for a in args:
        if isinstance(a, Tensor) and a.untyped_storage().nbytes() == 0 and a.numel():
            shape = tuple(a.shape)
            raise ValueError(f"a tensor of shape {shape} has a storage of 0 bytes; accepted: one in use")


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` is recording, which keeps operators and loses autograd Functions."""
    return not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None


def is_plain(*args: object) -> bool:
    """Whether calling an implementation directly is the same as going through the dispatcher.

    It is unless something wants to see the operator (a compiler, a tracer, a profiler, a functorch
    transform, a dispatch or function mode), or a tensor is not what its memory says: a subclass, lazily
    negated, a zero tensor, one of a batch, on the meta device.
    """
    if torch.compiler.is_compiling():
        return False
    if torch._C._len_torch_dispatch_stack():
        register_flops(_operators)
        return False
    if (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
        or (torch._C._len_torch_function_stack() and _is_watched_by_function_mode())
    ):
        return False
    for a in args:
        if isinstance(a, Tensor) and (
            (type(a) is not Tensor and type(a) is not torch.nn.Parameter)
            or torch._C._dispatch_keys(a).raw_repr() & ~_PLAIN_KEYS
        ):
            return False
    return True


def _is_watched_by_function_mode() -> bool:
    """Whether a function mode is active other than that of the default device, which is for factories."""
    modes = torch.overrides._get_current_function_mode_stack()
    return any(type(mode) is not DeviceContext for mode in modes)


def _plain_keys() -> int:
    """The dispatch keys, as bits, of tensors that have memory and nothing else to them."""
    bits = 0
    for backend in ("CPU", "CUDA", "XPU", "PrivateUse1"):
        for key in (backend, f"Autograd{backend}", f"Autocast{backend}"):
            bits |= DispatchKeySet(getattr(DispatchKey, key)).raw_repr()
    return bits | DispatchKeySet(DispatchKey.ADInplaceOrView).raw_repr()


_PLAIN_KEYS = _plain_keys()
