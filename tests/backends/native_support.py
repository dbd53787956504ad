"""The instruction sets and first passes that the native backend's tests run over."""

from __future__ import annotations

import pytest

from benchmarks.paths import PATHS, nearest_code_with_bound
from vq_kernels.backends import native

__all__ = ["ISAS", "ON_REQUEST", "PATHS", "nearest_code_with_bound", "use_isa", "use_path"]

ISAS = (
    "portable",
    "neon",
    "dotprod",
    "i8mm",
    "avx2",
    "avxvnni",
    "avx512",
    "avx512vnni",
    "avx512bf16",
    "amxint8",
    "amx",
)
# Those that are used only where VQ_ISA names them: no processor has run them yet.
ON_REQUEST = ("dotprod", "i8mm")


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
