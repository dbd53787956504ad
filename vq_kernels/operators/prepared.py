"""A codebook packed once for many searches, which the evaluation operations take in place of its tensor."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from ..backends import choose
from ..checks import check_choice
from ..devices import current_device_of
from ..tensor_checks import check_codebook
from .registry import check_memory, is_plain

METRICS = ("l2", "cosine")
# A codebook that is made anew at each access -> the tensor that it is made of.
_made_of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def made_of(codebook: Tensor, source: Tensor) -> Tensor:
    """``codebook``, of which a prepared one watches ``source``: no one else holds it, or writes to it."""
    if not torch.compiler.is_compiling():
        _made_of[codebook] = source
    return codebook


class PreparedCodebook:
    """What :func:`prepare_codebook` returns: immutable, with the codes of the moment when it was made.

    It holds a copy of the codes, what the backend packed of them, and the tensor it was made of. Every
    search compares that tensor with what it was: see :func:`prepare_codebook`.

    Attributes:
        shape, dtype, device: of the codes ``[K, D]``.
        metric: what it was prepared for.
        backend: name of the backend that packed it. Other backends search its codes unpacked.
    """

    __slots__ = (
        "__weakref__",
        "_codes",
        "_is_derived",
        "_memory",
        "_packed",
        "_source",
        "_state",
        "backend",
        "metric",
    )

    _codes: Tensor
    _is_derived: bool
    _memory: Tensor
    _packed: object | None
    _source: Tensor
    _state: tuple[Any, ...]
    backend: str
    metric: str

    def __init__(self, codebook: Tensor, metric: str, backend: str | None) -> None:
        chosen = choose("nearest_code", backend, codebook, codebook)
        codes = codebook.detach().clone(memory_format=torch.contiguous_format)
        pack = getattr(chosen, "prepare_codebook", None)
        with current_device_of(codes):
            packed = None if pack is None else pack(codes, metric)
        watched: Tensor = _made_of.get(codebook, codebook)
        fields = {
            "_codes": codes,
            "_packed": packed,
            # Of a leaf the object itself, whose data an assignment can exchange; else no graph is kept alive.
            "_source": watched if watched.is_leaf else watched.detach(),
            # Held, so that nothing else comes to lie at the address by which it is known.
            "_memory": watched.detach(),
            "_is_derived": watched is not codebook,
            "_state": _state_of(watched),
            "backend": chosen.name,
            "metric": metric,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        _register_hook()
        _prepared.add(self)

    @property
    def shape(self) -> torch.Size:
        return self._codes.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._codes.dtype

    @property
    def device(self) -> torch.device:
        return self._codes.device

    def codes(self) -> Tensor:
        """A copy of the codes ``[K, D]``."""
        return self._codes.clone()

    def codes_to_search(self, metric: str) -> Tensor:
        """The codes themselves, for a search with ``metric``: to be read only.

        Raises:
            ValueError: prepared for another metric, or of a tensor that is no longer what it was.
        """
        if metric != self.metric:
            raise ValueError(
                f"metric is {metric!r}; accepted: {self.metric!r}, for which the codebook was prepared"
            )
        now = _state_of(self._source)
        if now != self._state:
            changes = ", ".join(
                f"{name} {was} and now {is_now}"
                for name, was, is_now in zip(_STATE, self._state, now, strict=True)
                if was != is_now
            )
            raise ValueError(
                f"codebook is a PreparedCodebook whose tensor has changed since ({changes}); "
                "accepted: one prepared anew with prepare_codebook"
            )
        return self._codes

    def packed_for(self, backend: str) -> dict[str, object]:
        """What methods of ``backend`` take beyond the codes, by name: nothing if another one packed them."""
        return {"prepared": self._packed} if backend == self.backend and self._packed is not None else {}

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a PreparedCodebook is immutable; {name!r} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a PreparedCodebook is immutable; {name!r} cannot be deleted")

    def __repr__(self) -> str:
        size, dim = self.shape
        return f"PreparedCodebook(K={size}, D={dim}, metric={self.metric!r}, backend={self.backend!r})"

    def __copy__(self) -> PreparedCodebook:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled, and deep-copied, as the tensor it was made of: what comes out is prepared anew."""
        self.codes_to_search(self.metric)
        source = self._codes if self._is_derived else self._source
        return _prepare, (source, self.metric, self.backend)


_prepared: weakref.WeakSet[PreparedCodebook] = weakref.WeakSet()


@functools.cache
def _register_hook() -> None:
    register_optimizer_step_post_hook(_count_step)


def _count_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Raise the versions of parameters that codebooks were prepared of: ``fused=True`` does not."""
    if torch.compiler.is_compiling():  # what is compiled raises them
        return
    addresses = {prepared._source.untyped_storage().data_ptr() for prepared in _prepared}
    if not addresses:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            plain = type(parameter) in (Tensor, torch.nn.Parameter) and parameter.layout is torch.strided
            if plain and parameter.untyped_storage().data_ptr() in addresses:
                torch.autograd.graph.increment_version(parameter)


_STATE = ("version", "address", "device", "dtype", "shape", "strides")


def _state_of(codebook: Tensor) -> tuple[Any, ...]:
    """What can be seen of a tensor's history without reading it; fields as in ``_STATE``."""
    return (
        codebook._version,
        codebook.data_ptr(),
        codebook.device,
        codebook.dtype,
        tuple(codebook.shape),
        codebook.stride(),
    )


def _prepare(codebook: Tensor, metric: str, backend: str | None) -> PreparedCodebook:
    return prepare_codebook(codebook, metric=metric, backend=backend)


def prepare_codebook(codebook: Tensor, *, metric: str = "l2", backend: str | None = None) -> PreparedCodebook:
    """Pack a codebook once, for many searches without gradients: evaluation, encoding, streams of a few rows.

    The result takes the codebook's place in :func:`nearest_code` and :func:`vector_quantize`, which give
    the same values as with the tensor, bit for bit. Where the same few rows come again and again, packing
    the codes takes most of the time of a search; nothing of it is kept unless it is asked for here.

    It is a snapshot. A search raises ValueError if the tensor it was made of is no longer what it was:
    written to by PyTorch, a step of an optimizer among that, given other data (``parameter.data = ...``, a
    module's ``.to(...)``), or freed.
    Not seen are writes that leave no trace in the tensor's version, through ``.data``, NumPy or addresses,
    and a module's exchange of one buffer for another. Sending it to another process moves the tensor into
    shared memory, which counts as a change; a write to any view of the tensor's memory does too.
    Of a layer's ``codebook`` the layer's own tensor is watched, also where the property computes the codes.
    ``torch.compile`` breaks the graph at it.

    Args:
        codebook: ``[K, D]``, as in :func:`nearest_code`. It is copied, and kept beside the copy.
        metric: ``"l2"`` or ``"cosine"``; searches must ask for the same.
        backend: the name of the backend to pack it for, or None for automatic choice. The CPU kernels pack
            it, for the instruction set of now, and Triton's, on the current stream; others hold the copy.

    Raises:
        ValueError: shape, metric or backend not accepted, or the tensor cannot be compared later: one made in
            inference mode, which counts no versions, or one without memory of its own to look at (a fake
            one, or one inside a compiled function or a transform).
        TypeError: dtype not accepted or not a tensor.
    """
    check_codebook(codebook)
    check_choice(METRICS, metric=metric)
    if codebook.is_inference():
        raise ValueError(
            "codebook is a tensor made in inference mode, whose changes nobody counts; "
            "accepted: one made outside, such as codebook.clone() there"
        )
    if not is_plain(codebook):
        raise ValueError(
            "codebook is a tensor that a compiler, a transform or a mode looks at; "
            "accepted: an ordinary tensor, prepared outside of it"
        )
    check_memory(codebook)
    return PreparedCodebook(codebook, metric, backend)


def codes_of(codebook: Tensor | PreparedCodebook, metric: str) -> Tensor:
    """The tensor to search with ``metric``: the one given, or the prepared one's, checked."""
    check_choice(METRICS, metric=metric)
    return codebook.codes_to_search(metric) if isinstance(codebook, PreparedCodebook) else codebook
