"""The instruction sets and first passes that the native backend's tests run over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vq_kernels.backends import marshal, native

ISAS = ("portable", "neon", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx")
# name -> instruction set and first pass of a search
PATHS = {
    "portable": ("portable", "float32"),
    "neon": ("neon", "float32"),
    "avx2": ("avx2", "float32"),
    "avx512": ("avx512", "float32"),
    "avx512vnni": ("avx512vnni", "int8"),
    "avx512bf16": ("avx512bf16", "bfloat16"),
    "amx": ("amx", "bfloat16"),
}


def use_isa(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run native kernels with one instruction set, or skip with the reason."""
    reason = native.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    features = native.cpu_features()
    for have, what in (("compiled", "was not compiled in"), ("machine", "is not on this machine")):
        if name not in features[have]:
            pytest.skip(f"{name} {what}")
    monkeypatch.setenv("VQ_ISA", name)
    assert native.cpu_features()["used"] == name
    return name


def use_path(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Search with the instruction set and first pass of ``PATHS[name]``, or skip with the reason."""
    isa, first_pass = PATHS[name]
    use_isa(isa, monkeypatch)
    assert first_pass in native.cpu_features()["first_passes"]
    monkeypatch.setenv("VQ_FIRST_PASS", first_pass)
    return name


def nearest_code_with_bound(x: Tensor, codebook: Tensor, metric: str, bound_scale: float) -> Tensor:
    """``native.nearest_code`` in exact precision with its error bounds multiplied by ``bound_scale``."""
    from vq_kernels import _C

    indices = torch.empty(x.shape[:2], dtype=torch.int64)
    options = marshal.search_options(metric, "exact", bound_scale)
    threads = torch.get_num_threads()
    _C.nearest_code(marshal.rows(x), marshal.codes(codebook), options, threads, indices.data_ptr())
    return indices
