"""An editable install in a user's project: vq_kernels alone is importable, models through its command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("vq_kernels", "models", "benchmarks", "csrc")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with an editable install, pure Python, of a copy of this checkout."""
    folder = tmp_path_factory.mktemp("installed")
    checkout = folder / "checkout"
    checkout.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, checkout / name, ignore=unwanted)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, checkout)
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (environment / "lib" / version / "site-packages" / "packages.pth").write_text(
        sysconfig.get_paths()["purelib"]
    )
    run(environment, checkout, "python", "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation",
        "--disable-pip-version-check", "-e", ".")  # fmt: skip
    return environment


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project with a folder ``models`` of its own, which is no package."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net.py").write_text("class Net: ...\n")
    (tmp_path / "benchmarks").mkdir()
    return tmp_path


def run(environment: Path, folder: Path, program: str, *arguments: str) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(environment / "bin" / program), *arguments]
    done = subprocess.run(command, cwd=folder, env=variables | {"VQ_BUILD": "skip"}, text=True,
                          capture_output=True, timeout=800)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_only_vq_kernels_is_importable(environment: Path, project: Path) -> None:
    code = """
        import importlib.util as util, os
        from models.net import Net
        import vq_kernels, vq_kernels.backends.triton, vq_kernels.quantizers
        assert all(util.find_spec(name) is None for name in ("setup", "native_build", "models.cli"))
        places = list(util.find_spec("benchmarks").submodule_search_locations)
        assert places == [os.path.join(os.getcwd(), "benchmarks")], places
    """
    run(environment, project, "python", "-c", "\n".join(line.strip() for line in code.splitlines()))


def test_the_command_runs_in_a_project_with_models_of_its_own(environment: Path, project: Path) -> None:
    said = run(environment, project, "vq-models", "--help")
    assert said.startswith("usage: vq-models")
    assert "train-prior" in said


def test_a_wheel_says_what_the_command_needs(tmp_path: Path, monkeypatch, capsys) -> None:
    from vq_kernels import command

    monkeypatch.setattr(command, "__file__", str(tmp_path / "site-packages" / "vq_kernels" / "command.py"))
    assert command.main() == 2
    assert "vq-models needs a checkout of vq-kernels" in capsys.readouterr().err
