"""``python -m benchmarks.tune``: better tile sizes for the Triton search on this CUDA machine.

For every entry of ``vq_kernels/backends/triton/tuned.py`` (number of products and bucket of D) one field
of the stored configuration is changed at a time, and a change is kept where the search, through the
library's own path and with its indices checked, gets faster. ``--write`` puts what was found into
``tuned.py``; run ``make gpu-check`` after it. ``--out`` leaves the checkout as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from vq_kernels.backends import get_backend
from vq_kernels.backends.triton import common
from vq_kernels.backends.triton.plan import Config

from .. import machine
from ..measure import Budget, Deadline, timer_for
from ..work import Case
from . import source as tune_source
from .descent import DIMS, ENTRIES, PAIRS, Descent, Entry, Outcome, Search
from .source import Block, Line

SECONDS = 480.0
N, K = 2**18, 4096
BUDGET = Budget(seconds=0.05, sample_s=0.004, min_pairs=5, max_pairs=15)  # of a pair
WORKERS = 12

FILE = "tune.json"

Run = Callable[[Entry, Deadline], Outcome]
CompileAhead = Callable[[Entry, Sequence[Config]], None]


def run_once(entry: Entry, config: Config) -> None:
    """Fill Triton's cache, in a process of its own; what fails here fails, and is recorded, there again."""
    with contextlib.suppress(triton.TritonError, RuntimeError):
        for pair in PAIRS[entry.products]:
            x = torch.randn(N, entry.dim, device="cuda", dtype=pair.x)
            codebook = torch.randn(K, entry.dim, device="cuda", dtype=pair.codebook)
            Search(x, codebook, pair.precision, entry.products, config)()
        torch.cuda.synchronize()
        del x, codebook
        torch.cuda.empty_cache()


def compile_ahead(pool: ProcessPoolExecutor, entry: Entry, configs: Sequence[Config]) -> None:
    """Compile candidates side by side; all is quiet again when it returns, since timing comes next."""
    list(pool.map(partial(run_once, entry), configs))


@contextlib.contextmanager
def compilers(workers: int) -> Iterator[CompileAhead]:
    """What compiles candidates ahead in that many processes; with none they compile as they are called."""
    if workers == 0:
        yield lambda entry, configs: None
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield partial(compile_ahead, pool)


def tune(entries: Sequence[Entry], seconds: float, run: Run, outcomes: list[Outcome]) -> None:
    """Append outcomes of the entries begun in time; time that an entry leaves goes to those after it."""
    whole = Deadline(seconds)
    for i, entry in enumerate(entries):
        left = seconds * (1.0 - whole.used)
        if left <= 0:
            break
        print(f"[{whole.used:4.0%}] {entry}", file=sys.stderr, flush=True)
        outcomes.append(run(entry, Deadline(left / (len(entries) - i))))


def table(outcomes: Sequence[Outcome], entries: Sequence[Entry], seconds: float) -> str:
    """One line an entry: milliseconds, how many times faster, configurations tried and those that failed."""
    lines = [f"{'entry':<8}{'stored ms':>11}{'best ms':>10}{'change':>9}{'tried':>7}{'failed':>8}  best"]
    for o in outcomes:
        failed = sum(trial.reason is not None for trial in o.trials)
        times = f"{o.stored_s * 1e3:>11.3f}{o.best_s * 1e3:>10.3f}{o.ratio:>8.2f}x"
        state = "" if o.finished else "  (time ran out)"
        lines.append(f"{o.entry!s:<8}{times}{len(o.trials):>7}{failed:>8}  {tuple(o.best)}{state}")
    lines += [f"{e!s:<8}  not finished within {seconds:g} s" for e in entries[len(outcomes) :]]
    return "\n".join(lines)


def make_block(architecture: int, outcomes: Sequence[Outcome], source: str, provenance: str) -> Block:
    """The architecture's lines in ``tuned.py``: those tuned now, and the rest as it was."""
    tuned = {o.entry: o.best for o in outcomes if o.trials}
    before = tune_source.provenances(source, architecture)
    block: dict[int, list[Line]] = {}
    for entry in ENTRIES:
        config = tuned.get(entry) or tune_source.stored(architecture, *entry)
        where = provenance if entry in tuned else before.get((entry.products, entry.largest), "")
        block.setdefault(entry.products, []).append(Line(entry.largest, config, where))
    return block


def as_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome with every trial, times in milliseconds."""
    return {
        "entry": str(outcome.entry),
        "n": N,
        "k": K,
        "measured": [[str(part) for part in pair] for pair in PAIRS[outcome.entry.products]],
        "stored": outcome.stored._asdict(),
        "best": outcome.best._asdict(),
        "stored_ms": outcome.stored_s * 1e3,
        "best_ms": outcome.best_s * 1e3,
        "ratio": outcome.ratio,
        "finished": outcome.finished,
        "trials": [
            {
                "config": trial.config._asdict(),
                "milliseconds": None if trial.seconds is None else trial.seconds * 1e3,
                "ratio": trial.ratio,
                "reason": trial.reason,
            }
            for trial in outcome.trials
        ],
    }


def report(
    entries: Sequence[Entry],
    outcomes: Sequence[Outcome],
    *,
    architecture: int,
    description: dict[str, Any],
    seconds: float,
    write: Path | None,
    out: Path | None = None,
) -> None:
    """Print the table and the new lines, and write the results file.

    Args:
        write: the ``tuned.py`` to put the new lines into.
        out: a folder for ``tune.json`` and a ``tuned.py`` with the new lines, instead of ``results/``.
    """
    print(table(outcomes, entries, seconds) + "\n")
    results = {**description, "architecture": architecture, "outcomes": [as_json(o) for o in outcomes]}
    if out is None:
        path = machine.write_results(results, suffix="-tune")
    else:
        path = out / FILE
        machine.write_json(path, results)
    print(f"written to {os.path.relpath(path, machine.ROOT)}\n")
    source = (write or tune_source.PATH).read_text()
    provenance = f"{description['machine']['name']}, {description['date'][:10]}"
    block = make_block(architecture, outcomes, source, provenance)
    print(tune_source.block_source(architecture, block))
    copies = [] if out is None else [out / tune_source.PATH.name]
    for target in [*copies, *([] if write is None else [write])]:
        target.write_text(tune_source.rewrite(source, architecture, block))
        print(f"\nwritten to {os.path.relpath(target, machine.ROOT)}")


def refusal(rehearse: bool) -> str | None:
    """Why nothing can be tuned here, or None."""
    if not rehearse and not torch.cuda.is_available():
        return "tune needs a CUDA GPU, and torch sees none on this machine."
    x = torch.empty(1, 1, 1, device="cpu" if rehearse else "cuda")
    backend = get_backend("triton")
    reason = backend.unavailable_reason() or backend.unsupported_reason("nearest_code", x)
    if reason is None and common.interpreted() and not rehearse:
        reason = "TRITON_INTERPRET is set, and nothing is compiled"
    return None if reason is None else f"tune needs the Triton backend: {reason}."


def main(arguments: list[str] | None = None) -> int:
    """0 when done, 2 without a CUDA GPU; a wrong result raises."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time to use, default %(default)s")
    parser.add_argument("--write", action="store_true", help="put what was found into tuned.py")
    parser.add_argument("--out", type=Path, help="a folder for tune.json and tuned.py, instead of results/")
    parser.add_argument(
        "--rehearse", action="store_true", help="on the CPU, in Triton's interpreter (TRITON_INTERPRET=1)"
    )
    names = {str(entry): entry for entry in ENTRIES}
    help_only = f"these entries: products (1 to 3) x D ({', '.join(map(str, DIMS))}), such as 3x64"
    parser.add_argument("--only", nargs="+", choices=names, metavar="ENTRY", help=help_only)
    options = parser.parse_args(arguments)
    if (reason := refusal(options.rehearse)) is not None:
        print(reason, file=sys.stderr)
        return 2
    device, (n, k), budget = "cuda", (N, K), BUDGET
    workers = max(1, min(WORKERS, (os.cpu_count() or 2) - 1))
    if options.rehearse:
        device, (n, k), budget, workers = "cpu", (17, 40), Budget(0.0, 0.0, 1, 1), 0
    description = machine.describe(device)
    entries = [names[name] for name in options.only or names]
    outcomes: list[Outcome] = []
    architecture = common.architecture(torch.empty(0, device=device).device)

    def keep(write: Path | None) -> None:
        report(
            *(entries, outcomes),
            architecture=architecture,
            description=description,
            seconds=options.seconds,
            write=write,
            out=options.out,
        )

    write = None
    try:
        with compilers(workers) as ahead:

            def run(entry: Entry, deadline: Deadline) -> Outcome:
                case = Case(n, entry.dim, k)
                return Descent(entry, case, device, timer_for(device), budget, ahead).run(deadline)

            tune(entries, options.seconds, run, outcomes)
        write = tune_source.PATH if options.write else None
    finally:  # a wrong result ends the run; what was measured before it is kept, but not put into use
        keep(write)
    finished = sum(outcome.finished for outcome in outcomes)
    print(f"\n{len(outcomes)} of {len(entries)} entries tuned, {finished} to their end")
    return 0
