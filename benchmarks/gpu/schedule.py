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

REHEARSAL_S = 500.0  # limit of every part in a rehearsal
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


@dataclass(frozen=True)
class Stage:
    """Parts that run side by side: nothing is timed in a stage of more than one."""

    parts: tuple[Part, ...]
    beside_build: bool = False  # they need no native module, and may run while it is built

    @property
    def limit(self) -> float:
        return max(part.limit for part in self.parts)


def _alone(
    name: str, limit: float, arguments: tuple[str, ...], rehearsed: tuple[str, ...] | None = None
) -> Stage:
    return Stage((Part(name, limit, arguments, rehearsed=rehearsed),))


def _program(module: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", f"benchmarks.{module}", *arguments)


def _timed(module: str, *arguments: str) -> tuple[str, ...]:
    return _program(module, *arguments, "--seconds", "{seconds}")


_TINY_TUNE = ("--only", "1x32", "--seconds", "1")
_TUNED = ("1x64", "3x64", "1x128", "3x128", "1x256", "3x256")


def _checks(backend: str, limit: float) -> tuple[Part, ...]:
    """The checks of one backend that are no tests: a fatal fault in one leaves the others whole."""
    asked = (("streams", ("results", "streams")), ("graph", ("graph",)), ("sanitizer", ("sanitizer",)))
    return tuple(
        Part(f"{name}, {backend}", limit, _timed("gpu.check", "--backend", backend, "--parts", *parts))
        for name, parts in asked
    )


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
# Compiling takes most of it; its table is in the log.
_FEW_ROWS = Part(
    "few rows",
    40.0,
    _program("stacks", "--device", "cuda", "--seconds", "0.05"),
    is_program=False,
    rehearsed=_program("stacks", "--help"),
)
SESSIONS: dict[int, tuple[Stage, ...]] = {
    1: (
        Stage(
            (
                Part("facts", 25.0, _program("gpu.facts")),
                Part("compile", 70.0, _timed("gpu.precompile")),
            ),
            beside_build=True,
        ),
        _alone("exactness", 110.0, _timed("gpu.exactness")),
    ),
    2: (
        Stage(_checks("triton", 60.0), beside_build=True),
        _alone("tests", 90.0, _timed("gpu.check", "--parts", "tests")),
        Stage(_checks("cuda", 30.0)),
    ),
    3: (
        _alone("compile", 45.0, _timed("gpu.precompile", "--what", "bench")),
        _alone("roofs", 30.0, _program("gpu.rates")),
        Stage((_FEW_ROWS,)),
        _alone("tune", 30.0, _timed("tune", "--only", *_TUNED), _program("tune", *_TINY_TUNE)),
        _alone(
            "search",
            75.0,
            _timed("gpu.bench", "--parts", "roofs", "search", "--no-compile"),
            _timed("gpu.bench", "--parts", "search", "--no-compile"),  # roofs take their time
        ),
        _alone(
            "layer",
            50.0,
            _timed("gpu.bench", "--parts", "layer"),
            _timed("gpu.bench", "--parts", "layer", "--no-compile"),
        ),
        _alone("equal codes", 20.0, _timed("gpu.bench", "--parts", "equal_codes")),
    ),
}
