"""What the build left in this checkout: the record of the build, the module, its symbols, the report."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def info() -> dict[str, Any]:
    from vq_kernels.build_info import read_build_info

    found = read_build_info()
    if found is None:
        pytest.skip("this checkout was never built")
    return found


@pytest.fixture
def objects(info: dict[str, Any]) -> list[Path]:
    """Object files of the sources of one instruction set."""
    if not info["native"]["built"]:
        pytest.skip(f"no native module: {info['native']['reason']}")
    kind = "cuda" if info["cuda"]["built"] else "cpu"
    folders = (ROOT / "build").glob(f"cmake-*-{sys.implementation.cache_tag}-{kind}")
    found = [
        o for f in folders for o in f.glob("CMakeFiles/vq_cpu_*.dir/**/*.o") if "_portable" not in str(o)
    ]
    if not found:
        pytest.skip("the module was not built in this checkout")
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    return found


def test_build_info_says_how_it_was_built(info: dict[str, Any]) -> None:
    import vq_kernels

    assert info["version"] == vq_kernels.__version__
    for part in ("native", "cuda"):
        assert info[part]["built"] is (info[part]["reason"] is None)
    if info["native"]["built"]:
        assert "-ffp-contract=off" in info["native"]["flags"]
        assert "-ffast-math" not in info["native"]["flags"].split()
    if info["cuda"]["built"]:
        assert info["cuda"]["targets"]
        assert "--fmad=false" in info["cuda"]["flags"]


def weak_definitions(file: Path) -> list[str]:
    """Functions and data that the linker may merge with those of the same name in other objects."""
    lines = subprocess.check_output(["nm", "-C", "--defined-only", str(file)], text=True).splitlines()
    return [line for line in lines if re.match(r"[0-9a-f]+ [WVu] ", line)]


def test_no_weak_symbols_in_instruction_set_objects(objects: list[Path]) -> None:
    """An inline function compiled for AVX-512 could be the copy that the linker keeps for every CPU."""
    leaks = {file.name: weak for file in objects if (weak := weak_definitions(file))}
    assert not leaks


def test_weak_symbols_would_be_seen(tmp_path: Path) -> None:
    cxx = shutil.which("c++")
    if cxx is None or shutil.which("nm") is None:
        pytest.skip("no C++ compiler or nm on this machine")
    source = tmp_path / "leak.cpp"
    source.write_text(
        "template <class T> __attribute__((noinline)) T f(T x) { return x + 1; }\nint g() { return f(1); }\n"
    )
    subprocess.check_call([cxx, "-c", str(source), "-o", str(tmp_path / "leak.o")])
    assert weak_definitions(tmp_path / "leak.o")


def native_module(info: dict[str, Any]) -> Path:
    if not info["native"]["built"]:
        pytest.skip(f"no native module: {info['native']['reason']}")
    spec = importlib.util.find_spec("vq_kernels._C")
    assert spec is not None, "the build info says that the native module was built"
    assert spec.origin is not None
    return Path(spec.origin)


def test_native_module_needs_no_torch_and_no_driver(info: dict[str, Any]) -> None:
    module = native_module(info)
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    text = subprocess.check_output(["readelf", "-d", str(module)], text=True)
    needed = re.findall(r"NEEDED.*\[(.*)\]", text)
    assert needed
    assert not [name for name in needed if re.search("torch|c10|cuda|cudart", name)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_one_openmp_runtime(info: dict[str, Any]) -> None:
    """Two OpenMP runtimes in a process fight for the cores; ours must be the one that torch brought."""
    native_module(info)
    code = (
        "import torch, vq_kernels._C\n"
        "maps = open('/proc/self/maps').read().split()\n"
        "print(len({p for p in maps if 'libgomp' in p or 'libomp' in p or 'libiomp' in p}))"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert int(printed) == 1


def test_info_reports_backends_and_build(capsys: pytest.CaptureFixture[str], info: dict[str, Any]) -> None:
    from vq_kernels.info import main

    assert main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backends"]["reference"] is None
    assert report["build"] == info
    assert main([]) == 0
    text = capsys.readouterr().out
    for name, reason in report["backends"].items():
        assert re.search(rf"^ +{name} +{'works' if reason is None else 'no: '}", text, re.M)
        assert reason is None or reason in text


@pytest.mark.parametrize("variable", ["VQ_ISA", "VQ_FIRST_PASS"])
def test_info_says_which_variable_is_wrong(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vq_kernels.backends import native
    from vq_kernels.info import main

    if (reason := native.unavailable_reason()) is not None:
        pytest.skip(reason)
    monkeypatch.setenv(variable, "foo")
    assert main([]) == 0
    assert re.search(rf"kernels use +none: {variable} is 'foo'; accepted", capsys.readouterr().out)


def test_info_shows_the_reason_of_a_skipped_build(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vq_kernels import info as module

    part = {"built": False, "reason": "no C++ compiler found (c++, g++, clang++)"}
    record = {"version": "0", "commit": None, "python": "3", "native": part, "cuda": part}
    monkeypatch.setattr(module, "read_build_info", lambda: record)
    assert module.main([]) == 0
    assert "native module      not built: no C++ compiler found" in capsys.readouterr().out
