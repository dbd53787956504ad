"""What a process that ``precompile.py`` spawns runs; it is imported there by name."""

from __future__ import annotations

import time

from .cases import Case, check_case
from .target import Target, open_target


def call_once(case: Case, target: Target) -> tuple[str, float, str | None]:
    """The case's name, the seconds of its call and compilations, and its error; wrong results are none."""
    open_target(target.is_rehearsal, "compiling")
    start, error = time.monotonic(), None
    try:
        check_case(case, "triton", target)
    except AssertionError:
        pass
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}".splitlines()[0]
    return str(case), time.monotonic() - start, error
