"""Is every operation right on this GPU? One process for each (backend, D), several at a time.

A fatal fault makes a process unusable: it ends there, its backend's other processes are ended too, and
the case runs once more under compute-sanitizer's memcheck, so that the log names the kernel and the line.
``exact.json`` is written anew after every process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .. import machine
from .cases import DIMS, cases, check_case
from .faults import FATAL, NotHere, is_fatal, kill_group, sanitize
from .target import BACKENDS, Target, add_arguments, open_target

AT_ONCE = 8
PROCESS_S = 45.0
MEMCHECK_S = 20.0
FILE = "exact.json"


@dataclass
class Outcome:
    """What a process of one (backend, D) found."""

    backend: str
    d: int
    planned: int
    passed: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    ended: str | None = None  # why the process ended before its last case
    fatal_case: int | None = None

    @property
    def is_right(self) -> bool:
        return self.passed == self.planned


# --- one process ----------------------------------------------------------------------------------


def run_cases(backend: str, d: int, target: Target, only: int | None = None) -> int:
    """Check the cases of one D in this process, a line of JSON before and after each on stdout.

    Returns 0, or ``FATAL`` at the first fatal fault; wrong results are in the lines.
    """
    name = target.backend(backend)
    for index, case in enumerate(cases(d, target)):
        if only is not None and index != only:
            continue
        _say(begun=index)
        try:
            check_case(case, name, target)
        except Exception as error:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
            _say(failed=index, case=str(case), error=message)
            if is_fatal(error):
                return FATAL
        else:
            _say(passed=index)
    return 0


def _say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def parse_line(text: str) -> dict[str, Any] | None:
    """What ``_say`` printed; None for what a library printed, or a line cut off when its process ended."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


# --- all of them ----------------------------------------------------------------------------------


class Exactness:
    """All processes of all backends, and the file."""

    def __init__(self, target: Target, out: Path, process_s: float = PROCESS_S) -> None:
        self.target, self.path, self.process_s = target, out / FILE, process_s
        self.outcomes: list[Outcome] = []
        self.faults: list[dict[str, Any]] = []
        self._description = machine.describe(target.device)
        self._lock = threading.Lock()
        self._running: dict[str, list[subprocess.Popen[str]]] = {backend: [] for backend in BACKENDS}
        self._stopped: dict[str, str] = {}

    def run(self, dims: Sequence[int], at_once: int, seconds: float) -> None:
        """Triton's processes first, then CUDA C++'s; what would begin after ``seconds`` does not."""
        end = time.monotonic() + seconds
        backends = [backend for backend in BACKENDS for _ in dims]
        with ThreadPoolExecutor(at_once) as pool:
            for outcome in pool.map(partial(self._one, end), backends, [*dims] * len(BACKENDS)):
                if outcome.fatal_case is not None:
                    self._find_fault(outcome, end)

    def _one(self, end: float, backend: str, d: int) -> Outcome:
        outcome = Outcome(backend, d, len(cases(d, self.target)))
        start = time.monotonic()
        limit = min(self.process_s, end - start)
        if backend in self._stopped:
            outcome.ended = f"not begun: {self._stopped[backend]}"
        elif limit <= 0:
            outcome.ended = "not begun: no time left"
        else:
            self._watch(outcome, limit)
        outcome.seconds = round(time.monotonic() - start, 1)
        with self._lock:
            self.outcomes.append(outcome)
            self.save()
        return outcome

    def _watch(self, outcome: Outcome, limit: float) -> None:
        """Start the process and read its lines until it ends or its time is over."""
        backend, command = outcome.backend, self._command(outcome.backend, outcome.d)
        process = subprocess.Popen(
            command, cwd=machine.ROOT, text=True, stdout=subprocess.PIPE, start_new_session=True
        )
        with self._lock:
            self._running[backend].append(process)
        late = threading.Event()

        def end() -> None:
            late.set()
            kill_group(process)

        alarm = threading.Timer(limit, end)
        alarm.start()
        begun = None
        try:
            assert process.stdout is not None
            for text in process.stdout:
                if (line := parse_line(text)) is None:
                    continue
                begun = line.get("begun", begun)
                outcome.passed += "passed" in line
                if "failed" in line:
                    outcome.failures.append({"case": line["case"], "error": line["error"]})
            status = process.wait()
        finally:
            alarm.cancel()
            kill_group(process)
        case = "no case" if begun is None else str(cases(outcome.d, self.target)[begun])
        if status == FATAL or (status < 0 and not late.is_set()):
            outcome.ended = f"a fatal fault in {case} (exit status {status})"
            if backend not in self._stopped:
                outcome.fatal_case = begun
                self._stop(backend, outcome.ended)
            else:
                outcome.ended = f"ended: {self._stopped[backend]}"
        elif status < 0:
            outcome.ended = f"did not end within {limit:.0f} s, in {case}"
        elif status != 0:
            outcome.ended = f"exit status {status} in {case}"

    def _stop(self, backend: str, reason: str) -> None:
        """End a backend's other processes: a faulting kernel may leave the device in a bad state."""
        with self._lock:
            self._stopped[backend] = reason
            for process in self._running[backend]:
                if process.poll() is None:
                    kill_group(process)

    def _command(self, backend: str, d: int) -> list[str]:
        module = [sys.executable, "-m", "benchmarks.gpu.exactness"]
        return [*module, "--cases", backend, str(d), *self.target.flags]

    def _find_fault(self, outcome: Outcome, end: float) -> None:
        """Run the case of a fatal fault again under memcheck."""
        module = [*self._command(outcome.backend, outcome.d)[2:], "--only", str(outcome.fatal_case)]
        fault: dict[str, Any] = {"backend": outcome.backend, "d": outcome.d, "what": outcome.ended}
        limit = max(5.0, min(MEMCHECK_S, end - time.monotonic()))
        try:
            _, log = sanitize("memcheck", module, limit, only_ours=outcome.backend == "cuda")
            fault["memcheck"] = log[-8000:]
        except NotHere as reason:
            fault["memcheck"] = str(reason)
        print(
            f"fault of {outcome.backend} at D={outcome.d}: {fault['what']}\n{fault['memcheck']}", flush=True
        )
        with self._lock:
            self.faults.append(fault)
            self.save()

    def save(self) -> None:
        outcomes = [asdict(o) for o in self.outcomes]
        machine.write_json(self.path, {**self._description, "outcomes": outcomes, "faults": self.faults})

    def summary(self) -> str:
        """One line a backend, and what was wrong."""
        lines = []
        for backend in BACKENDS:
            outcomes = [o for o in self.outcomes if o.backend == backend]
            passed, planned = sum(o.passed for o in outcomes), sum(o.planned for o in outcomes)
            lines.append(f"{backend}: {passed} of {planned} cases right")
            for o in outcomes:
                lines += [f"  D={o.d}: {f['case']}: {f['error'].splitlines()[0]}" for f in o.failures[:5]]
                lines += [f"  D={o.d}: {o.ended}"] if o.ended else []
        return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """0 when every case is right, 1 when not, 2 without a CUDA GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.exactness", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--seconds", type=float, default=100.0, help="time to use, default %(default)s")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="processes, default %(default)s")
    parser.add_argument("--cases", nargs=2, metavar=("BACKEND", "D"), help="only these, in this process")
    parser.add_argument("--only", type=int, metavar="INDEX", help="with --cases: one of them")
    options = parser.parse_args(arguments)
    if (target := open_target(options.rehearse, "exactness")) is None:
        return 2
    if options.cases:
        backend, d = options.cases
        return run_cases(backend, int(d), target, options.only)
    if options.out is None:
        parser.error("--out is missing; accepted: a folder")
    dims = target.choose(DIMS, (8,))
    whole = Exactness(target, options.out, target.choose(PROCESS_S, options.seconds))
    whole.run(dims, options.at_once, options.seconds)
    print(whole.summary())
    right = sum(o.passed for o in whole.outcomes)
    print(f"{right} of {sum(o.planned for o in whole.outcomes)} cases right")
    return 0 if all(o.is_right for o in whole.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
