"""Scripts that run with a version of Triton of their own choice, in a process without its interpreter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_host import locked

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OLDEST = "3.6.0"  # that the backend accepts


def unpacked(version: str) -> Path:
    """A folder that holds this version of Triton, filled by pip when it is not there yet."""
    folder = ROOT / "build" / f"triton-{version}"
    with locked(folder.with_name(f"{folder.name}.lock")):  # two files of tests ask for it
        if not (folder / "triton" / "__init__.py").exists():
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(part)]
            done = subprocess.run([*command, f"triton=={version}"], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"triton {version} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
    return folder


def output_of(script: str, version: str, *arguments: str) -> str:
    """What a script of this folder prints with a version of Triton, or with the ``"installed"`` one."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    if version != "installed":
        paths.insert(0, str(unpacked(version)))
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
