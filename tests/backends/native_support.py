"""The instruction sets that the native backend's tests run over."""

from __future__ import annotations

import pytest

from vq_kernels.backends import native

ISAS = ("portable", "avx2", "avx512", "amx")


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
