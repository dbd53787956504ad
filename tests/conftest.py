"""One set of tests for every backend and machine.

``VQ_TEST_DEVICE=cuda`` runs the matrix on a GPU. Otherwise tensors are on the CPU, Triton kernels
run in its interpreter and the CUDA sources run on the host through the shim in ``cuda_host``. A
backend that cannot run here skips with its reason.
"""

from __future__ import annotations

import gc
import os
from importlib.util import find_spec
from types import SimpleNamespace

DEVICE = os.environ.get("VQ_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    # Read by triton when a kernel is defined, so it must be set before any test imports one.
    os.environ["TRITON_INTERPRET"] = "1"
    # Read by torch when it first looks for a GPU. One that is there would be what commands train on, and
    # Triton's interpreter does not serve a machine with one: on an NVIDIA H100 one of 13 tests failed.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest  # noqa: E402
import torch  # noqa: E402

from vq_kernels.backends import get_backend, register_backend  # noqa: E402

if DEVICE == "cpu" and find_spec("triton") is not None:
    from quick_interpreter import install

    install()

if DEVICE == "cpu":
    # torch.manual_seed keeps the text of its caller's stack for every kind of device that was not started,
    # for errors at its start: a millisecond before each test and two in each step of a training.
    for devices in (torch.cuda, torch.xpu, torch.mtia):
        if hasattr(devices, "traceback"):
            devices.traceback = SimpleNamespace(format_stack=list)

if DEVICE == "cuda":
    # Convolutions round float32 to 10 bits otherwise: a whole pass of a prior differs from its steps by that.
    torch.backends.cudnn.allow_tf32 = False

BACKENDS = ("reference", "native", "triton", "cuda")
# Half a minute each and more, the slow ones with them. A process of make test gets whole files: with the
# longest first, both end together.
LONGEST = {
    "test_build.py",
    "test_compile.py",
    "test_cuda_compile.py",
    "test_cuda_host_search.py",
    "test_gpu_session.py",
    "test_kills.py",
    "test_native_kernels.py",
    "test_rehearsal.py",
    "test_session.py",
    "test_studies.py",
    "test_training.py",
    "test_triton_compile.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """What is there now stays, and tests leave little garbage: to look for it took a tenth of all time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(DEVICE)


@pytest.fixture(scope="session")
def cuda_host() -> str:
    """The name of a backend that runs the CUDA sources on the host."""
    from cuda_host import load_backend

    backend = load_backend()
    register_backend(backend)
    return backend.name


def backend_or_skip(name: str, request: pytest.FixtureRequest) -> str:
    """The registered name under which ``name`` runs on the test device."""
    if name == "cuda" and DEVICE == "cpu":
        return str(request.getfixturevalue("cuda_host"))
    backend = get_backend(name)
    reason = backend.unavailable_reason() or backend.unsupported_reason(
        "nearest_code", torch.empty(1, 1, 1, device=DEVICE)
    )
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend that runs on the test device, by name."""
    return backend_or_skip(request.param, request)


@pytest.fixture(params=[b for b in BACKENDS if b != "reference"])
def kernel_backend(request: pytest.FixtureRequest) -> str:
    """Every backend but the reference, for comparisons with it."""
    return backend_or_skip(request.param, request)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
