"""``session.sh``: the parts of a session, stage after stage, each within a limit of its own.

Everything goes into one folder of a few flat files: ``session.json`` (written anew after every part),
``session.log`` (what all parts said) and what the parts write. The table comes last. Exit status: 0 all
right, 1 a part failed, 2 no CUDA GPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from ..machine import ROOT, describe, write_json
from . import packages
from .schedule import BUILD, REHEARSAL_BUILD, REHEARSAL_S, SESSIONS, Part
from .supervised import Running
from .target import Target, add_arguments, open_target

SECONDS = 565.0  # of a command of at most ten minutes
LEAST_S = 5.0  # with less time left a part is not begun
FILE, LOG = "session.json", "session.log"
PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"


@dataclass
class Record:
    """A line of the table."""

    session: int
    part: str
    status: str
    seconds: float
    detail: str  # the last line that the part printed


class Session:
    """One command: stage after stage, the build beside the first if that does not need it."""

    def __init__(self, target: Target, out: Path, environment: dict[str, str], seconds: float) -> None:
        self.target, self.out, self.environment = target, out, environment
        self.records: list[Record] = []
        self._end = time.monotonic() + seconds
        self._description = describe(target.device)
        self._running: list[tuple[int, Part, Running, float]] = []
        out.mkdir(parents=True, exist_ok=True)

    def run(self, numbers: Sequence[int], scratch: Path, *, build: bool = True) -> None:
        """All stages of these sessions; results so far are in the file after each part."""
        try:
            if build:
                self._start(numbers[0], self.target.choose(BUILD, REHEARSAL_BUILD), scratch)
            for number in numbers:
                for stage in SESSIONS[number]:
                    if not stage.beside_build:
                        self._finish()  # the build
                    names = "; ".join(part.name for part in stage.parts)
                    print(f"session {number}: {names}", file=sys.stderr, flush=True)
                    for part in stage.parts:
                        self._start(number, part, scratch)
                    self._finish()
        finally:
            for number, part, running, _ in self._running:
                running.kill()
                self._keep_log(number, part, running)

    def _start(self, number: int, part: Part, scratch: Path) -> None:
        limit = min(self.target.choose(part.limit, REHEARSAL_S), self._end - time.monotonic())
        if limit < LEAST_S:
            self._add(Record(number, part.name, SKIPPED, 0.0, "no time left"))
            return
        command = part.command_line(self.out, scratch, limit, self.target)
        log = scratch / f"{len(self.records) + len(self._running)}.log"
        with signals_wait():
            running = Running(command, ROOT, self.environment | part.variables, log)
            self._running.append((number, part, running, limit))

    def _finish(self) -> None:
        """Wait for all that runs, in the order in which it was begun."""
        while self._running:
            number, part, running, limit = self._running[0]
            status = running.wait(max(0.0, limit - running.seconds))
            last = running.last_line()
            if status is None:
                detail = f"stopped after {limit:.0f} s; last said: {last}"
            else:
                detail = last if status in (0, 1) else f"exit status {status}; last said: {last}"
            self._keep_log(number, part, running)
            self._running.pop(0)
            seconds = round(running.seconds, 1)
            self._add(Record(number, part.name, PASSED if status == 0 else FAILED, seconds, detail))

    def _keep_log(self, number: int, part: Part, running: Running) -> None:
        with (self.out / LOG).open("a") as log:
            log.write(f"\n===== session {number}: {part.name}\n{running.output()}")

    def _add(self, record: Record) -> None:
        self.records.append(record)
        records = [asdict(r) for r in self.records]
        write_json(self.out / FILE, {**self._description, "records": records})


def table(records: Sequence[Record]) -> str:
    """One line a part; details are whole in the file."""
    lines = [f"{'':<3}{'part':<20}{'status':<9}{'s':>6}  detail"]
    for r in records:
        lines.append(f"{r.session:<3}{r.part:<20}{r.status:<9}{r.seconds:>6.1f}  {r.detail[:110]}".rstrip())
    return "\n".join(lines)


def make_environment(target: Target, scratch: Path, folder: Path) -> dict[str, str]:
    """Variables of every part: the packages brought along, and caches in ``scratch``, not in the checkout."""
    site = scratch / "site"
    paths = [str(ROOT)]
    if any(folder.glob("*.whl")):
        packages.install(folder, site)
        paths.append(str(site))
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, [*paths, environment.get("PYTHONPATH")])),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",  # many processes at once; on a GPU the host does little
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR") or str(scratch / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(scratch / "hypothesis"),
    }
    if target.is_rehearsal:
        environment["TRITON_INTERPRET"] = "1"
    return environment


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    """Inside, ``handler`` is what these signals call."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, a signal to end raises SystemExit: parts are killed and what there is gets printed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(1)

    with handled(end, signal.SIGTERM, signal.SIGHUP):
        yield


@contextmanager
def signals_wait() -> Iterator[None]:
    """Inside, signals wait: a process that was started and is not yet noted would outlive the session."""
    came: list[int] = []
    try:
        with handled(lambda number, _: came.append(number), signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            yield
    finally:
        for late in came:
            signal.raise_signal(late)


def main(arguments: list[str] | None = None) -> int:
    """0 when every part passed, 1 when one failed, 2 without a CUDA GPU."""
    parser = argparse.ArgumentParser(prog="session.sh", description=__doc__)
    parser.add_argument("sessions", nargs="+", type=int, choices=SESSIONS, metavar="N", help="1, 2 or 3")
    add_arguments(parser)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time to use, default %(default)s")
    parser.add_argument(
        "--packages", type=Path, default=packages.FOLDER, help="wheels to install, default: .packages"
    )
    parser.add_argument(
        "--no-build", action="store_true", help="the native module is there, built for this Python and torch"
    )
    options = parser.parse_args(arguments)
    if options.out is None:
        parser.error("--out is missing; accepted: a folder")
    if (target := open_target(options.rehearse, "session.sh")) is None:
        return 2
    records: list[Record] = []
    with ended_by_signals(), tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        environment = make_environment(target, scratch, options.packages)
        session = Session(target, options.out.resolve(), environment, options.seconds)
        records = session.records
        try:
            session.run(options.sessions, scratch, build=not options.no_build)
        finally:
            print(f"\n{table(records)}\n\nin {session.out}", flush=True)
    return 1 if any(r.status == FAILED for r in records) else 0


if __name__ == "__main__":
    sys.exit(main())
