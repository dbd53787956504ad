"""What a session runs, in which order and within which time.

The plan is for two starts of a machine with a CUDA GPU that is at hand for a quarter of an hour, each start
costing about two minutes of it: session 1, then mending, then sessions 2 and 3 in one command.
``tests/benchmarks/test_gpu_session.py`` adds the limits up.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from .target import Target

REHEARSAL_S = 170.0  # limit of every part in a rehearsal
MARGIN_S = 5.0  # between the time a part is told to use and the limit at which it is killed
FILES = {  # of all sessions; a command leaves at most eight
    1: ("session.json", "session.log", "facts.json", "compile.json", "exact.json"),
    2: ("session.json", "session.log", "tests.xml", "check.json"),
    3: ("session.json", "session.log", "roofs.json", "tune.json", "tuned.py", "bench.json"),
}


@dataclass(frozen=True)
class Part:
    """A command with its limit in seconds.

    In ``arguments``, ``{seconds}`` stands for the time the program should use and ``{scratch}`` for a folder
    that is removed afterwards.
    """

    name: str
    limit: float
    arguments: tuple[str, ...]  # of Python
    is_program: bool = True  # of this folder: takes --out and --rehearse
    beside_build: bool = False  # needs no native module: may run while it is built
    rehearsed: tuple[str, ...] | None = None  # other arguments in a rehearsal
    variables: dict[str, str] = field(default_factory=dict)

    def command_line(self, out: Path, scratch: Path, limit: float, target: Target) -> list[str]:
        """The whole command, for a part that is killed after ``limit`` seconds."""
        arguments = self.arguments
        if target.is_rehearsal and self.rehearsed is not None:
            arguments = self.rehearsed
        values = {"seconds": f"{max(1.0, limit - MARGIN_S):.0f}", "scratch": str(scratch)}
        command = [sys.executable, *(a.format_map(values) for a in arguments)]
        return [*command, "--out", str(out), *target.flags] if self.is_program else command


def _program(module: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", f"benchmarks.{module}", *arguments)


def _timed(module: str, *arguments: str) -> tuple[str, ...]:
    return _program(module, *arguments, "--seconds", "{seconds}")


_TUNED = ("1x64", "3x64", "1x128", "3x128", "1x256", "3x256")
_CHECKED = ("--parts", "results", "streams", "graph")

BUILD = Part(
    "build",
    60.0,
    ("setup.py", "--quiet", "build_ext", "--inplace"),
    is_program=False,
    variables={"VQ_BUILD": "require"},
)
# A rehearsal must not touch the native module of the checkout, and has no time to compile one.
REHEARSAL_BUILD = Part(
    "build",
    60.0,
    ("setup.py", "--quiet", "build_ext", "--build-lib", "{scratch}/lib"),
    is_program=False,
    variables={"VQ_BUILD": "skip"},
)
SESSIONS: dict[int, tuple[Part, ...]] = {
    1: (
        Part("facts", 25.0, _program("gpu.facts"), beside_build=True),
        Part("compile", 50.0, _timed("gpu.precompile"), beside_build=True),
        Part("exactness", 110.0, _timed("gpu.exactness")),
    ),
    2: (
        Part(
            "streams, triton", 25.0, _timed("gpu.check", *_CHECKED, "--backend", "triton"), beside_build=True
        ),
        Part(
            "sanitizer, triton",
            35.0,
            _timed("gpu.check", "--parts", "sanitizer", "--backend", "triton"),
            beside_build=True,
        ),
        Part("tests", 90.0, _timed("gpu.check", "--parts", "tests")),
        Part("streams, cuda", 20.0, _timed("gpu.check", *_CHECKED, "--backend", "cuda")),
        Part("sanitizer, cuda", 30.0, _timed("gpu.check", "--parts", "sanitizer", "--backend", "cuda")),
    ),
    3: (
        Part("roofs", 30.0, _program("gpu.rates")),
        Part(
            "tune",
            60.0,
            _timed("tune", "--only", *_TUNED),
            rehearsed=_program("tune", "--only", "1x32", "--seconds", "1"),
        ),
        Part(
            "search",
            75.0,
            _timed("gpu.bench", "--parts", "roofs", "search", "--no-compile"),
            rehearsed=_timed("gpu.bench", "--parts", "search", "--no-compile"),  # roofs take their time
        ),
        Part(
            "layer",
            50.0,
            _timed("gpu.bench", "--parts", "layer"),
            rehearsed=_timed("gpu.bench", "--parts", "layer", "--no-compile"),
        ),
        Part("equal codes", 20.0, _timed("gpu.bench", "--parts", "equal_codes")),
    ),
}
