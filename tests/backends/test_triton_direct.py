"""Kernels that are started directly: as Triton starts them, under its keys, with little work of the host.

``triton_direct.py`` looks at all launches once for each version of Triton, in a process without the
interpreter and without a GPU.
"""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

import pytest

pytest.importorskip("triton")

from test_triton_launch import kernels
from triton_versions import OLDEST, output_of


@pytest.fixture(scope="module", params=["installed", pytest.param(OLDEST, marks=pytest.mark.slow)])
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output_of("triton_direct.py", request.param))
    installed = importlib.metadata.version("triton")
    assert found["version"] == (installed if request.param == "installed" else request.param)
    return found


def test_keys_tell_apart_what_triton_compiles_apart(report: dict[str, Any]) -> None:
    """Two calls have one key exactly if Triton has one kernel for them."""
    keys = report["keys"]
    assert keys["told_apart_by"] == {"triton": [], "launch": []}
    assert 150 < keys["keys"] < keys["calls"]


def test_what_is_not_described_is_left_to_triton(report: dict[str, Any]) -> None:
    assert len(report["keys"]["unknown"]) == 7


def test_every_kernel_is_started_directly_as_triton_starts_it(report: dict[str, Any]) -> None:
    launches = report["launches"]
    assert launches["different"] == []
    assert set(launches["direct"]) == set(kernels())
    assert min(launches["direct"].values()) >= 1


def test_hooks_debugging_and_streams_are_respected(report: dict[str, Any]) -> None:
    """Whether a launch is direct, the stream, and how many hooks it has."""
    assert report["watched"] == {
        "as_before": [True, 7, 0],
        "hook": [False, 7, 1],
        "chain": [False, 7, 1],
        "debug": [False, 7, 0],
        "after": [True, 7, 0],
        "other_stream": [True, 70, 0],
        "other_device": [False, 73, 0],  # compiled and loaded anew
        "other_device_again": [True, 73, 0],
    }


def test_the_host_does_little(report: dict[str, Any]) -> None:
    """Triton's launch takes no part, and Python calls no third more functions than when this was written."""
    work = report["host_work"]
    assert {name: counted["runs"] for name, counted in work.items() if counted["runs"]} == {}
    most = {"nearest": 180, "nearest_large": 230, "step": 540, "ema": 90, "gather": 90}
    calls = {name: work[name]["calls"] for name in most}
    assert {name: count for name, count in calls.items() if count > most[name]} == {}


def test_compile_time_parameters_come_last() -> None:
    from vq_kernels.backends.triton import launch

    class Parameter:
        def __init__(self, is_constexpr: bool) -> None:
            self.is_constexpr = is_constexpr

    class Jit(launch.JITFunction):  # type: ignore[misc]
        def __init__(self) -> None:
            self.params = [Parameter(True), Parameter(False)]
            self.__name__ = "some_kernel"

    with pytest.raises(TypeError, match="some_kernel has a compile-time parameter before a run-time one"):
        launch.Kernel(Jit())
