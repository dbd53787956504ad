"""A process that leads a group of its own, writes to a log, and is ended with the whole group."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from .faults import kill_group

LONGEST_LOG = 1 << 20  # bytes of one process that are kept: its end, which tells most


class Running:
    """A command under way; stdout and stderr are appended to ``log``."""

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str], log: Path) -> None:
        self.log = log
        self._from = log.stat().st_size if log.exists() else 0
        self._start = time.monotonic()
        self._ended: float | None = None
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, text=True,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self._ended or time.monotonic()) - self._start

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None if it had to be killed after ``seconds``."""
        try:
            status: int | None = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        self.kill()
        self._ended = time.monotonic()
        self._shorten()
        return status

    def kill(self) -> None:
        """End the process and all that it started."""
        kill_group(self._process)
        self._process.wait()

    def last_line(self) -> str:
        """The last line it wrote that is not empty; an empty text if there is none."""
        lines = self._output().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _output(self) -> bytes:
        with self.log.open("rb") as log:
            log.seek(self._from)
            return log.read()

    def _shorten(self) -> None:
        output = self._output()
        if len(output) > LONGEST_LOG:
            with self.log.open("r+b") as log:
                log.truncate(self._from)
                log.seek(self._from)
                log.write(b"[...]\n" + output[-LONGEST_LOG:])
