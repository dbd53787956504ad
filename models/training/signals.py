"""Signals that end a run at the next step instead of in the middle of one."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


class TrainingStopped(KeyboardInterrupt):
    """Training ended early because of a signal, after its last step was saved.

    number: of the signal, for the exit status 128 + number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopSignals:
    """Inside the block :meth:`install` may be called; afterwards all handlers are as they were before.

    From then on the first SIGINT, SIGTERM or SIGUSR1 is only remembered, as ``received``, and a second one
    does at once what it would have done without this. Handlers that the program has set itself stay, and so
    does everything where training runs in another thread than the main one.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in STOPPING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # as it is for one that was not set from Python
                signal.signal(number, handler)

    def install(self) -> None:
        """Remember signals from now on; to be called after Lightning has set its own handlers."""
        for number, handler in self._before.items():
            if handler in _DEFAULTS:
                signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each, handler in self._before.items():
            if handler in _DEFAULTS:
                signal.signal(each, handler)
        print(
            f"\n{signal.Signals(number).name}: saving after this step; a second signal stops at once",
            file=sys.stderr,
            flush=True,
        )
