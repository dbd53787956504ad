"""Importing the package: works without triton and without the native module, does nothing else."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Makes `import NAME` fail for every name given, as if it were not installed.
BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == b or name.startswith(b + ".") for b in BLOCKED):
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)
sys.meta_path.insert(0, Block())
"""


def run_python(code: str, *flags: str) -> str:
    """What a fresh interpreter prints; the test fails with its error output if it fails."""
    command = [sys.executable, *flags, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return done.stdout


def blocked(*names: str) -> str:
    return f"BLOCKED = {names!r}\n{BLOCK}"


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        pytest.param(("triton",), ["triton"], id="no-triton"),
        pytest.param(("vq_kernels._C",), ["native", "cuda"], id="no-native-module"),
        pytest.param(("triton", "vq_kernels._C"), ["triton", "native", "cuda"], id="neither"),
    ],
)
def test_works_without(names: tuple[str, ...], missing: list[str]) -> None:
    code = blocked(*names) + textwrap.dedent(
        """
        import torch, vq_kernels
        torch.manual_seed(0)
        x, codebook = torch.randn(5, 3), torch.randn(7, 3)
        assert vq_kernels.nearest_code(x, codebook).tolist() == torch.cdist(x, codebook).argmin(1).tolist()
        backends = vq_kernels.available_backends()
        assert backends["reference"] is None, backends
        """
    )
    code += f"assert all(isinstance(backends[n], str) for n in {missing}), backends\n"
    run_python(code)


def test_every_module_imports_without_triton_and_native_module() -> None:
    code = blocked("triton", "vq_kernels._C") + textwrap.dedent(
        """
        import importlib, pkgutil, vq_kernels
        for module in pkgutil.walk_packages(vq_kernels.__path__, "vq_kernels."):
            # The kernels themselves are written in triton; the backend's package is not.
            if not module.name.startswith(("vq_kernels.backends.triton.", "vq_kernels._C")):
                importlib.import_module(module.name)
        """
    )
    run_python(code)


def test_nothing_happens_at_import() -> None:
    """No warning, no VQ_* variable read, no process started, no CUDA initialised."""
    run_python(
        """
        import os, sys, torch

        read = []
        class Environ(type(os.environ)):
            def __getitem__(self, key):
                read.append(key)
                return super().__getitem__(key)
        os.environ.__class__ = Environ
        started = []
        sys.addaudithook(lambda event, args: started.append(args) if event == "subprocess.Popen" else None)

        import vq_kernels
        assert not [key for key in read if str(key).startswith("VQ_")], read
        assert not started, started
        assert not torch.cuda.is_initialized()
        """,
        "-W",
        "error:::vq_kernels",
    )


@pytest.mark.parametrize("package", ["vq_kernels", "models"])
def test_importing_costs_little_beyond_torch(package: str) -> None:
    """In processor time of a fresh interpreter: at most a fifth of what torch takes, in the best of three."""
    code = f"""
        import time
        start = time.process_time()
        import torch
        between = time.process_time()
        import {package}
        print((time.process_time() - between) / (between - start))
    """
    shares: list[float] = []
    while not shares or (shares[-1] >= 0.2 and len(shares) < 3):
        shares.append(float(run_python(code)))
    assert shares[-1] < 0.2, shares
