"""Fill Triton's cache with the kernels that another part will call, many compilations side by side.

Each case of ``exactness.py``, or contender of ``bench.py``, that compiles other kernels than those before it
is called once, in spawned processes. A result is not looked at here; what does not compile is listed, and
fails there again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from functools import partial

from .. import machine
from ..peers import search_peers
from .cases import DIMS, Case, cases
from .compiling import Contender, call_once
from .faults import is_fatal
from .problems import TRITON_PEERS, Problems, problems_of
from .target import Target, add_arguments, open_target

WORKERS = 15
FILE = "compile.json"


def distinct(dims: tuple[int, ...], target: Target) -> list[Case]:
    """One case for every set of kernels, in the order in which they matter: all D of a kind together."""
    first: dict[tuple[object, ...], Case] = {}
    by_dim = [cases(d, target) for d in dims]
    for same_kind in zip(*by_dim, strict=True):
        for case in same_kind:
            first.setdefault(case.compiles, case)
    return list(first.values())


def contenders(problems: Problems, target: Target) -> list[Contender]:
    """The layer, and every search of ours and of the peers in Triton, once for each D, K and dtype."""
    peers = [peer.name for peer in search_peers(target.device) if peer.name in TRITON_PEERS]
    layers = [Contender(case, "step") for work, case in problems.layers if work == "step"]
    names = ("vq_kernels exact", "vq_kernels fast", "vq_kernels high", *peers)
    return [*layers, *(Contender(case, name) for name in names for case in problems.searches)]


def compile_all(
    todo: Sequence[Case | Contender], target: Target, workers: int, seconds: float
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of every case called in time, and the errors of those that failed, by the case's name.

    A fatal fault ends it: the process that met it is lost, and so is whatever it would be given next.
    """
    end = time.monotonic() + seconds
    took: dict[str, float] = {}
    failures: dict[str, str] = {}
    with multiprocessing.get_context("spawn").Pool(workers) as pool:  # leaving it ends the processes
        results = pool.imap_unordered(partial(call_once, target=target), todo)
        while len(took) < len(todo):
            try:
                case, took_s, error = results.next(max(0.0, end - time.monotonic()))
            except multiprocessing.TimeoutError:
                break
            took[case] = took_s
            if error is not None:
                failures[case] = error
                if is_fatal(error):
                    break
    return took, failures


def main(arguments: list[str] | None = None) -> int:
    """0 when all that was begun compiled, 1 when something did not, 2 without a CUDA GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.precompile", description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--what", choices=("exactness", "bench"), default="exactness", help="default %(default)s"
    )
    parser.add_argument("--seconds", type=float, default=45.0, help="time to use, default %(default)s")
    options = parser.parse_args(arguments)
    if (target := open_target(options.rehearse, "precompile")) is None:
        return 2
    if options.out is None:
        parser.error("--out is missing; accepted: a folder")
    start = time.monotonic()
    todo: Sequence[Case | Contender] = contenders(problems_of(target), target)
    if options.what == "exactness":
        todo = distinct(target.choose(DIMS, (8,)), target)
    todo = target.choose(todo, todo[-1:])
    workers = target.choose(max(1, min(WORKERS, (os.cpu_count() or 2) - 1)), 1)
    took, failures = compile_all(todo, target, workers, options.seconds)
    seconds = time.monotonic() - start
    if options.what == "exactness":
        slowest = sorted(took, key=lambda name: -took[name])[:20]
        results = {
            "cases": len(todo),
            "called": len(took),
            "workers": workers,
            "seconds": round(seconds, 1),
            "processor_seconds": round(sum(took.values()), 1),
            "slowest": {name: round(took[name], 1) for name in slowest},
            "failures": failures,
        }
        machine.write_json(options.out / FILE, {**machine.describe(target.device), **results})
    for name, error in failures.items():
        print(f"{name}: {error}")
    print(f"{len(took)} of {len(todo)} sets of kernels in {seconds:.0f} s, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
