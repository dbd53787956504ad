"""The GPU's clock and power while something runs, from the driver's own tool."""

from __future__ import annotations

import statistics
import subprocess
import threading
from types import TracebackType

QUERY = ("clocks.sm", "power.draw", "temperature.gpu")
EVERY_MS = 50


class ClockSampler:
    """Samples the first GPU inside a ``with`` block; ``report()`` gives each block's medians afterwards.

    Where the tool is missing there are no samples, and the report says so by ``None``.
    """

    def __init__(self) -> None:
        self._samples: list[tuple[float, ...]] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> ClockSampler:
        self._samples = []
        query = f"--query-gpu={','.join(QUERY)}"
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits", "-i", "0", "-lms", str(EVERY_MS)]
        try:
            self._process = subprocess.Popen(
                command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError:
            self._process = None
            return self
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                self._samples.append(tuple(float(value) for value in line.split(",")))
            except ValueError:  # "[N/A]"
                continue

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        if self._reader is not None:
            self._reader.join()

    def report(self) -> dict[str, float] | None:
        """Median and lowest clock (MHz), median power (W) and temperature (C), number of samples."""
        if not self._samples:
            return None
        clocks, power, temperature = zip(*self._samples, strict=True)
        return {
            "clock_mhz": statistics.median(clocks),
            "lowest_clock_mhz": min(clocks),
            "power_w": statistics.median(power),
            "temperature_c": statistics.median(temperature),
            "samples": len(self._samples),
        }
