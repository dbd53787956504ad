"""Named tuples that ``torch.export.save`` can write: it asks that their names be registered."""

from __future__ import annotations

from typing import TypeVar

from torch.utils import _pytree

_T = TypeVar("_T", bound=type)


def exportable(kind: _T) -> _T:
    """Register a class made by NamedTuple under its public name, ``vq_kernels.NAME``.

    A program that was saved holds this name: reading it needs ``import vq_kernels`` first, as its
    operators do. PyTorch has no public function for it (``torch.export`` names this one in its error).
    """
    _pytree._register_namedtuple(kind, serialized_type_name=f"vq_kernels.{kind.__name__}")
    return kind
