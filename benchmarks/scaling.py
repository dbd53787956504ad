"""How time grows with N, K and D, on every backend of ours that works here and the best-known peers.

``python -m benchmarks.scaling`` measures on this machine's CPU (``--device cuda``: GPU), writes
``results/<machine>-<date>-scaling.json`` and draws ``docs/scaling.png``. ``--plot FILE...`` only draws,
one row of panels for each file with curves in it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import machine
from .agreement import check_indices
from .measure import Budget, Timer, measure_alone, timer_for
from .peers import Peer, our_search, search_peers
from .work import Case, make_inputs

PNG = machine.ROOT / "docs" / "scaling.png"
_BUDGET = Budget(seconds=0.15, sample_s=0.004, min_pairs=3, max_pairs=9)
_LONGEST_CALL_S = 0.5  # a curve ends where a call takes longer
_SHOWN_PEERS = {
    "cpu": ("torch.cdist", "chunked matmul", "faiss-cpu"),
    "cuda": ("torch.cdist", "chunked matmul", "flash-kmeans", "flashlib triton"),
}


def axes(device: str) -> dict[str, list[Case]]:
    """The problems along each axis; what does not vary is N=16384 (GPU: 262144), D=64, K=512."""
    n = 2**18 if device == "cuda" else 2**14
    return {
        "N": [Case(2**e, 64, 512) for e in range(8, 21 if device == "cuda" else 18, 2)],
        "K": [Case(n, 64, 2**e) for e in range(4, 17 if device == "cuda" else 15, 2)],
        "D": [Case(n, d, 512) for d in (1, 4, 16, 32, 64, 128, 256, 512)],
    }


def contenders(device: str) -> list[str]:
    """Our backends that work on the device, then the peers to show."""
    ours = [name for name in _backends(device) if machine.backend_works(name)]
    return [*(f"vq_kernels {name}" for name in ours), *_SHOWN_PEERS[device]]


def _backends(device: str) -> tuple[str, ...]:
    return ("native", "reference") if device == "cpu" else ("triton", "cuda", "reference")


def measure(
    device: str = "cpu", seconds: float = 180.0, problems: dict[str, list[Case]] | None = None
) -> list[dict[str, Any]]:
    """One record per point: axis, n, d, k, contender, milliseconds. Results are compared first.

    Curves are measured smallest problem first; each axis has a third of ``seconds`` to begin points.
    """
    timer = timer_for(device)
    points: list[dict[str, Any]] = []
    peers = {peer.name: peer for peer in search_peers(device)}
    for axis, cases in (problems or axes(device)).items():
        ended: set[str] = set()
        start = time.monotonic()
        for case in cases:
            x, codebook = make_inputs(case, device)
            exact = our_search(x, codebook)()
            for contender in contenders(device):
                if contender in ended or time.monotonic() - start > seconds / 3:
                    continue
                if not contender.startswith("vq_kernels") and peers[contender].reason is not None:
                    continue
                point: dict[str, Any] = {
                    "axis": axis,
                    "n": case.n,
                    "d": case.d,
                    "k": case.k,
                    "contender": contender,
                }
                points.append(point)
                try:
                    seconds_taken = _time_point(contender, peers.get(contender), x, codebook, exact, timer)
                except torch.OutOfMemoryError as error:
                    point |= {"milliseconds": None, "reason": f"{error}".splitlines()[0]}
                    ended.add(contender)
                    continue
                point["milliseconds"] = 1e3 * seconds_taken
                if seconds_taken > _LONGEST_CALL_S:
                    ended.add(contender)
    return points


def _time_point(
    contender: str, peer: Peer | None, x: Tensor, codebook: Tensor, exact: Tensor, timer: Timer
) -> float:
    """Median seconds of a search whose result was compared first."""
    if peer is None:
        search, units = our_search(x, codebook, backend=contender.split()[1]), (0.0, 0.0)
    else:
        search, units = peer.prepare(x, codebook), (peer.input_unit, peer.output_unit)
    check_indices(x, codebook, exact, search(), input_unit=units[0], output_unit=units[1])
    return measure_alone(search, timer=timer, budget=_BUDGET).median


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Draw curves over N, K and D, one row of panels for each results file that has some."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    results = [r for r in results if r.get("scaling")]
    if not results:
        raise ValueError(
            "results is without curves ('scaling'); accepted: files of this program or of gpu-bench"
        )
    figure, panels = pyplot.subplots(
        len(results), 3, figsize=(12, 3.6 * len(results)), squeeze=False, layout="constrained"
    )
    for row, result in zip(panels, results, strict=True):
        names = list(dict.fromkeys(p["contender"] for p in result["scaling"]))
        for panel, axis in zip(row, ("N", "K", "D"), strict=True):
            points = [p for p in result["scaling"] if p["axis"] == axis]
            for index, name in enumerate(names):
                curve = [
                    (p[axis.lower()], p["milliseconds"])
                    for p in points
                    if p["contender"] == name and p["milliseconds"] is not None
                ]
                ours = name.startswith("vq_kernels")
                style = {"linewidth": 2.4, "marker": "o"} if ours else {"linewidth": 1.2, "marker": "."}
                line = "-" if ours else "--"
                if curve:
                    panel.plot(*zip(*curve, strict=True), line, label=name, color=f"C{index}", **style)
            fixed = points[0] if points else {}
            others = ", ".join(f"{o}={fixed[o.lower()]}" for o in "NDK" if o != axis and fixed)
            panel.set(xscale="log", yscale="log", xlabel=f"{axis}   ({others})")
            panel.xaxis.get_major_locator().set_params(base=10)
            panel.grid(alpha=0.3)
        row[0].set_ylabel("exact search, ms")
        row[0].legend(fontsize=8)
        row[1].set_title(f"{result['machine']['name']}, {result['date'][:10]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Measure and draw, or only draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--plot", nargs="+", type=Path, metavar="FILE", help="draw these results files")
    parser.add_argument("--png", type=Path, default=PNG, help="where the picture goes")
    options = parser.parse_args(arguments)
    if options.plot:
        results = [json.loads(path.read_text()) for path in options.plot]
    else:
        if options.device == "cuda" and not torch.cuda.is_available():
            print("--device cuda needs a CUDA GPU, and torch sees none on this machine.", file=sys.stderr)
            return 2
        results = [{**machine.describe(options.device), "scaling": measure(options.device)}]
        path = machine.write_results(results[0], suffix="-scaling")
        print(f"written to {path}")
    plot(results, options.png)
    print(f"drawn in {options.png}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
