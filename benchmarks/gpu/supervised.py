"""A process that leads a group of its own, writes to a log, and is ended with the whole group."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from .faults import kill_group

MARK = "VQ_SESSION_PART"  # in the environment of a part and of whatever it starts
LONGEST_LOG = 1 << 20  # bytes of one process that are shown: its end, which tells most


class Running:
    """A command under way; stdout and stderr go to ``log``, a file of its own."""

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str], log: Path) -> None:
        self.log = log
        self._mark = uuid.uuid4().hex
        self._start = time.monotonic()
        self._ended: float | None = None
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment | {MARK: self._mark}, text=True,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        self._process.wait()
        self._ended = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has run, or ran."""
        return (self._ended or time.monotonic()) - self._start

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None if it had to be killed after ``seconds``."""
        self._watcher.join(seconds)
        in_time = not self._watcher.is_alive()
        self.kill()
        return self._process.returncode if in_time else None

    def kill(self) -> None:
        """End the process and all that it started, groups of their own included."""
        kill_group(self._process)
        self._watcher.join()
        for pid in _marked(self._mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def output(self) -> str:
        """What it wrote, the end of it where that is long."""
        text = self.log.read_bytes()
        shown = text if len(text) <= LONGEST_LOG else b"[...]\n" + text[-LONGEST_LOG:]
        return shown.decode(errors="replace")

    def last_line(self) -> str:
        """The last line it wrote that is not empty; an empty text if there is none."""
        lines = reversed(self.output().splitlines())
        return next((line.strip() for line in lines if line.strip()), "")


def _marked(mark: str) -> Iterator[int]:
    """Processes with this mark in their environment, where the system lists processes in ``/proc``."""
    entry = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)
        except OSError:  # it ended, or is another user's
            continue
