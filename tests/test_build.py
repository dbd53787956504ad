"""The build: switches, what it finds, what it does when a tool fails, what it leaves behind."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

import pytest

import native_build as build

ROOT = Path(__file__).resolve().parents[1]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
NO_GPU: list[tuple[int, int]] = []


# Without pybind11, whose headers take seconds.
MODULE = """#include <Python.h>
static PyObject* object(bool value) { return PyBool_FromLong(value); }
static PyObject* object(int value) { return PyLong_FromLong(value); }
static auto compute() { return ANSWER; }
static PyObject* answer(PyObject*, PyObject*) { return object(compute()); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, nullptr}, {}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
"""


def program(path: Path, script: str) -> str:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def fake_nvcc(path: Path, release: str = "13.0", script: str = "exit 1") -> str:
    """Answers ``--version`` like nvcc and does ``script`` otherwise."""
    version = f'echo "Cuda compilation tools, release {release}, V{release}.88"'
    return program(path, f'if [ "$1" = --version ]; then {version}; exit 0; fi\n{script}')


def tiny_source(folder: Path, answer: int | str = 1) -> Path:
    """The real CMakeLists.txt with a module of one function, which compiles in less than a second."""
    (folder / "csrc" / "cpu").mkdir(parents=True)
    shutil.copy(ROOT / "CMakeLists.txt", folder)
    (folder / "csrc" / "bindings.cpp").write_text(MODULE.replace("ANSWER", str(answer)))
    return folder


def answer_of(folder: Path) -> int:
    """What the module in a build folder answers, asked in a fresh interpreter."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import _C; print(_C.answer())"
    return int(subprocess.check_output([sys.executable, "-c", code, str(folder)], text=True))


def copy_checkout(target: Path) -> Path:
    """The files of this checkout that a build or an sdist needs."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json")
    for name in ("vq_kernels", "csrc"):
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for name in (
        "setup.py",
        "native_build.py",
        "native_tools.py",
        "pyproject.toml",
        "CMakeLists.txt",
        "MANIFEST.in",
        "LICENSE",
        "README.md",
    ):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target)
    return target


def run_setup(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("VQ_BUILD", "VQ_CUDA", "VQ_CUDA_ARCHS", "CXX")}
    command = [sys.executable, "setup.py", *arguments]
    return subprocess.run(command, cwd=folder, env=env | environ, text=True, capture_output=True, timeout=800)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "visible_gpus", lambda: NO_GPU)


@pytest.fixture
def needs_compiler() -> None:
    if build.find_cxx(os.environ) is None:
        pytest.skip("no C++ compiler on this machine")
    for tool in ("pybind11", "cmake", "ninja"):
        if importlib.util.find_spec(tool) is None and shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


# Switches and what is found


def test_switches_default_to_auto() -> None:
    assert build.read_switches({}) == ("auto", "auto", ())


def test_switches_are_read() -> None:
    environ = {"VQ_BUILD": "require", "VQ_CUDA": "1", "VQ_CUDA_ARCHS": "80-real;90a-real, 100f"}
    assert build.read_switches(environ) == ("require", "1", ("80-real", "90a-real", "100f"))


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"VQ_BUILD": "no"}, "VQ_BUILD='no': accepted are auto, require, skip"),
        ({"VQ_CUDA": "yes"}, "VQ_CUDA='yes': accepted are auto, 1, 0"),
        ({"VQ_CUDA_ARCHS": "80;hopper"}, "VQ_CUDA_ARCHS: 'hopper'"),
        ({"VQ_BUILD": "skip", "VQ_CUDA": "1"}, "VQ_CUDA=1 contradicts VQ_BUILD=skip"),
    ],
)
def test_wrong_switches_are_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(build.PlatformError, match=re.escape(message)):
        build.read_switches(environ)


@pytest.mark.parametrize(
    ("cxx", "launcher", "compiler", "flags"),
    [
        ("{bin}/g++", (), "g++", ()),
        ("{bin}/g++ -pthread -m64", (), "g++", ("-pthread", "-m64")),
        ("{bin}/ccache {bin}/g++", ("ccache",), "g++", ()),
        ("{bin}/ccache {bin}/g++ -pthread -Ofast", ("ccache",), "g++", ("-pthread",)),
        ("{spaced}/g++", (), "g++", ()),
        ("'{spaced}/g++' -pthread", (), "g++", ("-pthread",)),
    ],
)
def test_cxx_is_split_as_a_shell_would(
    tmp_path: Path, cxx: str, launcher: tuple[str, ...], compiler: str, flags: tuple[str, ...]
) -> None:
    folders = {"bin": tmp_path / "bin", "spaced": tmp_path / "a folder"}
    for folder in folders.values():
        for name in ("g++", "ccache"):
            program(folder / name, "exit 0")
    found = build.find_cxx({"CXX": cxx.format(**folders)})
    assert found is not None
    assert tuple(Path(word).name for word in found.launcher) == launcher
    assert (Path(found.path).name, found.flags) == (compiler, flags)


@pytest.mark.parametrize("cxx", ["g++ 'open", "-pthread", "no-such-program", "g++ no-such-program"])
def test_cxx_that_cannot_be_understood_is_an_error(cxx: str) -> None:
    with pytest.raises(build.PlatformError, match=r"CXX=.*VQ_BUILD=skip"):
        build.find_cxx({"CXX": cxx, "PATH": os.environ["PATH"]})


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ("-O2 -march=native -g", "-O2 -march=native -g"),
        ("-Ofast -g", "-g"),
        ("-O2 -ffast-math -flto=auto -fno-fast-math", "-O2 -fno-fast-math"),
        ("-Xcompiler -ffast-math --use_fast_math -lineinfo", "-lineinfo"),
        ("-Xcompiler=-Wall,-Ofast -Xcompiler -Wextra", "-Xcompiler -Wextra"),
        ("-DNAME='a b' -mfpmath=387", "'-DNAME=a b'"),
    ],
)
def test_flags_that_change_results_are_left_out_and_recorded(flags: str, kept: str) -> None:
    environ, asked, ignored = build.build_environment({"CXXFLAGS": flags, "HOME": "/"})
    assert asked == {"CXXFLAGS": flags}
    assert environ["CXXFLAGS"] == kept
    assert len(ignored) == (flags != kept)


SUBNORMAL = """import _C
tiny = float(sys.argv[2]) * 2.0**-500  # 2^-1060, below the smallest normal number
print(_C.answer(), tiny > 0)
"""


@pytest.mark.usefixtures("needs_compiler")
@pytest.mark.parametrize(("variable", "flags"), [("CXXFLAGS", "-Ofast"), ("LDFLAGS", "-ffast-math -O1")])
def test_fast_math_of_the_environment_reaches_neither_compiler_nor_linker(
    tmp_path: Path, variable: str, flags: str
) -> None:
    """A module that was linked with such a flag makes every subnormal of its process 0."""
    source = tiny_source(tmp_path / "source", answer="(volatile double[]){0.0 / 0.0}[0] != 0.0 / 0.0")
    environ, _, ignored = build.build_environment(os.environ | {variable: flags})
    assert ignored
    compiler = build.find_cxx(environ)
    folder = build.cmake_build(source, compiler, None, (), environ)
    command = f"import sys; sys.path.insert(0, sys.argv[1]); {SUBNORMAL}"
    said = subprocess.check_output([sys.executable, "-c", command, str(folder), str(2.0**-560)], text=True)
    assert said.split() == ["True", "True"]


@pytest.mark.usefixtures("needs_compiler")
def test_other_flags_of_the_environment_get_a_build_of_their_own(tmp_path: Path) -> None:
    """CMake would keep those of the first build."""
    source = tiny_source(tmp_path / "source", answer="ANSWER")
    for value in ("1", "2"):
        environ = build.build_environment(os.environ | {"CXXFLAGS": f"-DANSWER={value}"})[0]
        folder = build.cmake_build(source, build.find_cxx(environ), None, (), environ)
        assert answer_of(folder) == int(value)


def test_missing_cxx_is_named() -> None:
    with pytest.raises(build.PlatformError, match=r"CXX='/no/such/g\+\+'.*VQ_BUILD=skip"):
        build.find_cxx({"CXX": "/no/such/g++", "PATH": "/bin"})


def test_nvcc_is_found_in_the_documented_order(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    pip = fake_nvcc(site / "nvidia" / "cu13" / "bin" / "nvcc", "13.0")
    on_path = fake_nvcc(tmp_path / "path" / "nvcc", "12.8")
    home = fake_nvcc(tmp_path / "home" / "bin" / "nvcc", "12.9")
    explicit = fake_nvcc(tmp_path / "cudacxx", "12.4")
    environ = {"CUDACXX": explicit, "CUDA_HOME": str(tmp_path / "home"), "PATH": str(tmp_path / "path")}
    assert build.find_nvcc(environ, str(site)) == (explicit, (12, 4, 88), None)
    del environ["CUDACXX"]
    assert build.find_nvcc(environ, str(site)) == (home, (12, 9, 88), None)
    del environ["CUDA_HOME"]
    assert build.find_nvcc(environ, str(site)).path == on_path
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        found = build.find_nvcc({"PATH": ""}, str(site))
        assert found == (pip, (13, 0, 88), str(site / "nvidia" / "cu13" / "lib"))


def test_pip_toolkit_brings_its_library_path(tmp_path: Path) -> None:
    nvcc = fake_nvcc(tmp_path / "nvidia" / "cu13" / "bin" / "nvcc")
    found = build.find_nvcc({"CUDACXX": nvcc, "PATH": ""}, str(tmp_path))
    assert found.library_path == str(tmp_path / "nvidia" / "cu13" / "lib")


@pytest.mark.parametrize(
    ("nvcc", "gpus", "targets"),
    [
        ((13, 0), [(9, 0)], ("90a-real",)),
        ((13, 0), [(8, 0), (8, 9)], ("80-real", "89-real")),
        ((12, 4), [], ("80-real", "90a-real", "80-virtual")),
        (
            (13, 0),
            [],
            ("80-real", "90a-real", "100f-real", "120f-real", "80-virtual"),
        ),
    ],
    ids=["hopper", "ampere-and-ada", "portable-12.4", "portable-13.0"],
)
def test_cuda_targets(nvcc: tuple[int, int], gpus: list[tuple[int, int]], targets: tuple[str, ...]) -> None:
    assert build.cuda_targets(nvcc, gpus) == targets


@pytest.mark.parametrize(
    ("cuda", "nvcc", "gpus", "reason"),
    [
        ("0", (13, 0), NO_GPU, "VQ_CUDA=0"),
        ("auto", None, NO_GPU, "no nvcc found"),
        ("auto", (11, 8), NO_GPU, "nvcc 11.8 (/nvcc) is older than 12.0"),
        ("auto", (13, 0), [(7, 0)], "compute capability 7.0 is older than 7.5"),
    ],
)
def test_reason_for_leaving_cuda_out(
    cuda: str, nvcc: tuple[int, ...] | None, gpus: list[tuple[int, int]], reason: str
) -> None:
    tool = build.Nvcc("/nvcc", nvcc, None) if nvcc else None
    targets, said = build.plan_cuda(build.Switches("auto", cuda, ()), tool, gpus)
    assert targets == ()
    assert reason in said


def test_cuda_that_was_asked_for_and_is_not_to_be_had_is_an_error() -> None:
    with pytest.raises(build.PlatformError, match=r"VQ_CUDA=1, but no nvcc found.*VQ_CUDA=0"):
        build.plan_cuda(build.Switches("auto", "1", ()), None, NO_GPU)


# What happens when a tool is missing or fails


def test_no_compiler_gives_pure_python_one_warning_and_the_reason(tmp_path: Path) -> None:
    folder = copy_checkout(tmp_path / "checkout")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run_setup(folder, "-q", "build_ext", "--inplace", PATH=str(empty))
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert text.count("no C++ compiler found") == 1
    assert not list((folder / "vq_kernels").glob("_C*"))
    info = json.loads((folder / "vq_kernels" / "_build_info.json").read_text())
    assert info["native"] == {"built": False, "reason": "no C++ compiler found (c++, g++, clang++)"}
    code = "from vq_kernels.build_info import why_not_built; print(why_not_built('native'))"
    shown = subprocess.check_output([sys.executable, "-c", code], cwd=folder, text=True)
    assert "no C++ compiler found" in shown


def test_no_compiler_is_an_error_where_the_module_is_required() -> None:
    switches = build.Switches("require", "auto", ())
    with pytest.raises(build.PlatformError, match=r"no C\+\+ compiler found.*VQ_BUILD=skip"):
        build.build_native(ROOT, switches, {"PATH": ""})


@pytest.mark.usefixtures("needs_compiler", "no_gpu")
def test_failing_compiler_is_an_error_that_names_it_and_the_switch(tmp_path: Path) -> None:
    cxx = program(tmp_path / "bin" / "g++", "echo this compiler is broken >&2; exit 1")
    source = tiny_source(tmp_path / "source")
    environ = dict(os.environ) | {"CXX": cxx}
    with pytest.raises(build.CompileError, match=rf"C\+\+.*{re.escape(cxx)}.*VQ_BUILD=skip"):
        build.build_native(source, build.Switches("auto", "0", ()), environ)


@pytest.fixture(scope="module")
def tiny_build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """Source, build folder and info of a build whose nvcc fails on a machine without a GPU."""
    source = tiny_source(tmp_path_factory.mktemp("tiny") / "source")
    nvcc = fake_nvcc(source.parent / "nvcc")
    patch = pytest.MonkeyPatch()
    patch.setattr(build, "visible_gpus", lambda: NO_GPU)
    environ = dict(os.environ) | {"CUDACXX": nvcc}
    folder, info = build.build_native(source, build.Switches("auto", "auto", ()), environ)
    patch.undo()
    return source, folder, info


@pytest.mark.usefixtures("needs_compiler")
def test_failing_nvcc_without_gpu_gives_cpu_only_and_the_reason(
    request: pytest.FixtureRequest,
) -> None:
    source, folder, info = request.getfixturevalue("tiny_build")
    assert info["native"]["built"]
    assert not info["cuda"]["built"]
    assert str(source.parent / "nvcc") in info["cuda"]["reason"]
    assert "no GPU is visible" in info["cuda"]["reason"]
    assert answer_of(folder) == 1


@pytest.mark.usefixtures("needs_compiler")
def test_failing_nvcc_with_a_gpu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "visible_gpus", lambda: [(9, 0)])
    nvcc = fake_nvcc(tmp_path / "nvcc")
    environ = dict(os.environ) | {"CUDACXX": nvcc}
    source = tiny_source(tmp_path / "source")
    with pytest.raises(build.CompileError, match=rf"nvcc.*{re.escape(nvcc)}.*VQ_CUDA=0"):
        build.build_native(source, build.Switches("auto", "auto", ()), environ)


@pytest.mark.usefixtures("needs_compiler", "no_gpu")
def test_source_that_does_not_compile_is_an_error(request: pytest.FixtureRequest) -> None:
    """In the folder of the last build: the error of a new file is not hidden by what was built before."""
    source, _, _ = request.getfixturevalue("tiny_build")
    broken = source / "csrc" / "cpu" / "broken.cpp"
    broken.write_text("int broken( {\n")
    try:
        with pytest.raises(build.CompileError, match=r"C\+\+ compilation.*VQ_BUILD=skip"):
            build.build_native(source, build.Switches("auto", "0", ()), os.environ)
    finally:
        broken.unlink()


@pytest.mark.usefixtures("needs_compiler", "no_gpu")
def test_copied_checkout_builds_its_own_sources(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """CMake's cache in the copied build folder still names the original checkout."""
    source, _, _ = request.getfixturevalue("tiny_build")
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    bindings = copy / "csrc" / "bindings.cpp"
    bindings.write_text(bindings.read_text().replace("return 1", "return 2"))
    folder, _ = build.build_native(copy, build.Switches("auto", "0", ()), os.environ)
    assert folder.is_relative_to(copy)
    assert answer_of(folder) == 2


def test_stale_module_is_deleted(tmp_path: Path) -> None:
    folder = copy_checkout(tmp_path / "checkout")
    stale = folder / "vq_kernels" / f"_C{SUFFIX}"
    stale.write_bytes(b"left by an earlier build")
    done = run_setup(folder, "-q", "build_ext", "--inplace", VQ_BUILD="skip")
    assert done.returncode == 0, done.stderr
    assert not stale.exists()
    info = json.loads((folder / "vq_kernels" / "_build_info.json").read_text())
    assert info["native"]["reason"] == "VQ_BUILD=skip"


def test_deleted_python_file_does_not_live_on_in_a_wheel(tmp_path: Path) -> None:
    folder = copy_checkout(tmp_path / "checkout")
    left = folder / "build" / "lib" / "vq_kernels" / "deleted.py"
    left.parent.mkdir(parents=True)
    left.write_text("")
    done = run_setup(folder, "-q", "build", "--build-lib", "build/lib", VQ_BUILD="skip")
    assert done.returncode == 0, done.stderr
    assert not left.exists()
    assert (left.parent / "__init__.py").exists()


def test_sdist_holds_what_a_build_needs(tmp_path: Path) -> None:
    folder = copy_checkout(tmp_path / "checkout")
    (folder / "vq_kernels" / "_build_info.json").write_text("{}")
    done = run_setup(folder, "-q", "sdist", "-d", str(tmp_path / "dist"))
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    sources = {str(p.relative_to(folder)) for p in (folder / "csrc").rglob("*") if p.is_file()}
    needed = sources | {
        "setup.py",
        "native_build.py",
        "native_tools.py",
        "pyproject.toml",
        "CMakeLists.txt",
        "LICENSE",
        "vq_kernels/__init__.py",
    }
    assert needed <= names
    assert "vq_kernels/_build_info.json" not in names
    assert not [name for name in names if name.endswith((".so", ".pyc")) or name.startswith("models")]
