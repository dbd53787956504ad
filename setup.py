"""Build of the native module: a ``build_ext`` that drives CMake and Ninja.

Three environment variables steer it:

- ``VQ_BUILD``: ``auto`` (default: compile, or install pure Python where there is no C++ compiler),
  ``require`` (no compiler is an error), ``skip`` (pure Python);
- ``VQ_CUDA``: ``auto`` (default: compile the CUDA kernels where nvcc is found), ``1`` (no nvcc is an
  error), ``0`` (CPU only);
- ``VQ_CUDA_ARCHS``: targets such as ``80-real;90a-real;80-virtual``. Default: those of the GPUs
  that ``nvidia-smi`` reports, or a list that serves every GPU since Ampere where there is none.

A compile that fails is an error, never a silent fallback; the one exception is a failing nvcc on a
machine without a GPU, where the CPU kernels are built and the reason is recorded. What was built,
how, and why the rest was not, goes to ``vq_kernels/_build_info.json``.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # a build frontend does not put the project's folder on the path

from native_build import build_native, locked, read_switches  # noqa: E402
from native_tools import first_line  # noqa: E402


def git_commit(source: Path) -> str | None:
    """The commit that is built, with ``+`` if tracked files differ from it; None outside a checkout."""
    if not (source / ".git").exists():
        return None
    commit = first_line(["git", "-C", str(source), "rev-parse", "HEAD"])
    changed = first_line(["git", "-C", str(source), "status", "--porcelain", "--untracked-files=no"])
    return f"{commit}+" if commit and changed else commit


def replace_file(source: Path, target: Path) -> None:
    """Copy in one step: a process that has the old module mapped keeps its own copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy2(source, temporary)
    temporary.replace(target)


def remove_stale(package: Path, keep: str | None = None) -> None:
    """Delete modules of this interpreter that an earlier build left in ``package``."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for old in (package / f"_C{suffix}", package / f"_C{sysconfig.get_config_var('SHLIB_SUFFIX')}"):
        if old.name != keep:
            old.unlink(missing_ok=True)


class BuildExt(build_ext):
    """Build ``vq_kernels._C`` with CMake, and write ``_build_info.json`` beside it."""

    def _pairs(self) -> list[tuple[Path, Path]]:
        """(in the build folder, in the source tree) for each file that this command makes."""
        module = Path(self.get_ext_filename("vq_kernels._C"))
        names = (module, Path("vq_kernels", "_build_info.json"))
        return [(Path(self.build_lib) / name, ROOT / name) for name in names]

    def run(self) -> None:
        (module, module_in_tree), (info_file, info_in_tree) = self._pairs()
        switches = read_switches(os.environ)
        with locked(ROOT / "build"):
            folder, parts = build_native(ROOT, switches, os.environ)
            info = {
                "version": self.distribution.get_version(),
                "commit": git_commit(ROOT),
                "python": platform.python_version(),
                "platform": sysconfig.get_platform(),
                **parts,
            }
            remove_stale(module.parent)
            info_file.parent.mkdir(parents=True, exist_ok=True)
            info_file.write_text(json.dumps(info, indent=2) + "\n")
            if folder is not None:
                replace_file(folder / module.name, module)
            elif switches.build == "auto":
                self.warn(f"vq_kernels is installed without its native module: {parts['native']['reason']}")
            if not self.inplace:
                return
            remove_stale(module_in_tree.parent, keep=module.name if folder else None)
            replace_file(info_file, info_in_tree)
            if folder is not None:
                replace_file(module, module_in_tree)

    def get_outputs(self) -> list[str]:
        return [str(built) for built, _ in self._pairs() if built.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {str(built): str(in_tree) for built, in_tree in self._pairs() if built.exists()}


class BuildPy(build_py):
    """Copy the Python files into an empty folder: one that was deleted must not live on in a wheel."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "vq_kernels"), ignore_errors=True)
        super().run()


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("vq_kernels._C", sources=[])],
        cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
    )
