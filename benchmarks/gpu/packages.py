"""Gather the packages that a GPU session brings along (``packages.txt``) into a folder, and try them.

They are downloaded as wheels for Python 3.12, without what they depend on: that is listed too, or is there.
The session installs every wheel of the folder for itself, without a network.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from ..machine import ROOT

PACKAGES = Path(__file__).with_name("packages.txt")
FOLDER = ROOT / ".packages"
PYTHON = "3.12"  # of the machine they are for
LIMIT_MIB = 64.0  # of all that is brought along, checkout included

_LINE = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[\w.]+)\s+# (?P<module>[\w.]+)$")


class Package(NamedTuple):
    """A line of ``packages.txt``."""

    requirement: str  # NAME==VERSION
    module: str


def read_packages(path: Path) -> list[Package]:
    """The lines of a list.

    Raises:
        ValueError: a line is not ``NAME==VERSION  # MODULE``.
    """
    packages = []
    for line in path.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise ValueError(f"line of {path.name} is {line!r}; accepted: NAME==VERSION  # MODULE")
        packages.append(Package(f"{match['name']}=={match['version']}", match["module"]))
    return packages


def pip(*arguments: str) -> None:
    """Run pip.

    Raises:
        RuntimeError: it failed; the message carries its last lines.
    """
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError("\n".join(["pip failed:", *done.stderr.splitlines()[-5:]]))


def download(packages: list[Package], folder: Path) -> None:
    """Bring the wheels into ``folder``, and remove those of other versions: two would not install."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    flags = ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--dest", str(folder)]
    pip("download", *flags, *(p.requirement for p in packages))


def install(folder: Path, site: Path) -> None:
    """Install every wheel of ``folder`` into ``site`` without a network, as a session does."""
    flags = ["--no-index", "--no-deps", "--no-compile", "--only-binary=:all:", "--python-version", PYTHON]
    pip("install", *flags, "--target", str(site), *(str(wheel) for wheel in sorted(folder.glob("*.whl"))))


def import_from(module: str, site: Path) -> str | None:
    """None if the module is imported from ``site``, else what went wrong."""
    program = f"import {module} as m, pathlib; print(pathlib.Path(m.__file__).resolve())"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    if done.returncode != 0:
        return done.stderr.strip().splitlines()[-1]
    place = Path(done.stdout.strip().splitlines()[-1])
    return None if place.is_relative_to(site.resolve()) else f"it was imported from {place}"


def main(arguments: list[str] | None = None) -> int:
    """0 when all are there, small enough and importable, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.packages", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: .packages of the checkout")
    parser.add_argument("--limit-mib", type=float, default=LIMIT_MIB, help="of all, default %(default)g")
    parser.add_argument("--no-download", action="store_true", help="only try what the folder holds")
    options = parser.parse_args(arguments)
    packages = read_packages(PACKAGES)
    if not options.no_download:
        download(packages, options.folder)
    wheels = sorted(options.folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    problems = []
    if len(wheels) != len(packages):
        problems.append(f"{options.folder} holds {len(wheels)} wheels; accepted: {len(packages)}")
    if size > options.limit_mib:
        problems.append(f"their size is {size:.1f} MiB; accepted: at most {options.limit_mib:g}")
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        install(options.folder, site)
        for package in packages:
            problem = import_from(package.module, site)
            print(f"{package.requirement:<34}{problem or 'imports'}")
            problems += [f"{package.requirement}: {problem}"] if problem else []
    print(f"{len(wheels)} wheels, {size:.1f} MiB in {options.folder}")
    for problem in problems:
        print(f"FAILED {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
