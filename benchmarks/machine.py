"""What a result must say about where it was taken: machine, versions, commit and date."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vq_kernels import available_backends, info

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

_PACKAGES = (
    *("torch", "triton", "numpy", "vector-quantize-pytorch", "faiss-cpu"),
    *("flash-kmeans", "flashlib", "cuvs-cu12", "cuvs-cu13"),
)


def package_version(name: str) -> str | None:
    """Version of an installed distribution, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def machine_name(device: str = "cpu") -> str:
    """A name for result files, made of the model of the GPU or CPU: ``nvidia-h200``; never a host name."""
    if device == "cuda":
        return _slug(torch.cuda.get_device_name())
    cpu = info.collect()["cpu"]
    units = [u for u, flag in (("avx512", "avx512f"), ("amx", "amx_bf16")) if flag in cpu["found"]]
    return _slug(" ".join([cpu["model"], *units, f"{cpu['cores']} cores"]))


def backend_works(name: str) -> bool:
    """Whether a backend of ours is there and works on this machine."""
    return available_backends().get(name, "unknown") is None


def _slug(text: str) -> str:
    text = re.sub(r"\((r|tm)\)", "", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def describe(device: str = "cpu") -> dict[str, Any]:
    """Machine, versions, commit and date, as every results file carries them."""
    report = info.collect()
    versions: dict[str, str | None] = {"vq_kernels": report["version"], "python": report["python"]}
    versions.update((name, package_version(name)) for name in _PACKAGES)
    if device == "cuda":
        versions["cuda"] = torch.version.cuda
    commit, modified = _checkout()
    return {
        "machine": {
            "name": machine_name(device),
            "cpu": report["cpu"],
            "cuda": report["cuda"] if device == "cuda" else None,
            "platform": report["platform"],
        },
        "threads": torch.get_num_threads(),
        "backends": report["backends"],
        "versions": versions,
        "commit": commit or report["commit"],
        "modified": modified,
        "load": round(os.getloadavg()[0], 2),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


class StealMeter:
    """How much of the processors' time went to other machines on the same host since it was made."""

    def __init__(self, path: Path = Path("/proc/stat")) -> None:
        self._path = path
        self._before = self._read()

    def _read(self) -> tuple[float, float] | None:
        """(stolen, all) in ticks; None where the system does not tell."""
        try:
            ticks = [float(t) for t in self._path.read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        return (ticks[7], sum(ticks)) if len(ticks) == 8 else None

    def share(self) -> float | None:
        """Between 0 and 1; None where the system does not tell."""
        now = self._read()
        if self._before is None or now is None:
            return None
        stolen, whole = (n - b for n, b in zip(now, self._before, strict=True))
        return round(stolen / whole, 4) if whole > 0 else 0.0


MOST_LOAD, MOST_STEAL, MOST_SPREAD = 0.5, 0.02, 0.15


def load_warning(load: float, steal: float | None = None, spread: float | None = None) -> str | None:
    """A sentence if times taken here are provisional because the machine was busy; else None.

    Args:
        load: mean number of running threads of the minute before, as a description has it.
        steal: share of the processors' time that went to other machines meanwhile.
        spread: half the distance between a row's quartiles over its median, in the median row.
    """
    signs = []
    if load >= MOST_LOAD:
        signs.append(f"load {load:g} before the run")
    if steal is not None and steal >= MOST_STEAL:
        signs.append(f"{steal:.0%} of the processors' time taken by other machines")
    if spread is not None and spread >= MOST_SPREAD:
        signs.append(f"samples of a row {spread:.0%} apart")
    if not signs:
        return None
    words = "; ".join(signs)
    return f"note: the machine was busy ({words}); times are provisional, ratios were formed pair by pair"


def _checkout() -> tuple[str | None, bool | None]:
    """Commit of this checkout and whether source files differ from it; (None, None) outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, text=True, capture_output=True, check=True, timeout=30).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "vq_kernels", "csrc", "benchmarks", "CMakeLists.txt")
        return git("rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None, None


def write_results(results: dict[str, Any], *, suffix: str = "") -> Path:
    """Write ``<machine>-<date><suffix>.json`` under ``results/`` and return its path.

    Raises:
        ValueError: one of machine, versions, commit and date is missing.
    """
    for key in ("machine", "versions", "commit", "date"):
        if key not in results:
            raise ValueError(f"results is without {key!r}; accepted: what describe() returns, plus figures")
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{results['machine']['name']}-{results['date'][:10]}{suffix}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path


def write_json(path: Path, content: object) -> None:
    """Write JSON in one step: a run that is stopped while writing leaves the file as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
