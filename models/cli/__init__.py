"""The command line: one file a command, each with ``add_parser`` and ``run``."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence

from models.cli import (
    compare,
    convert,
    encode,
    evaluate,
    export,
    reconstruct,
    report,
    reproduce,
    sample,
    sweep,
    train,
    train_prior,
)
from models.pretrained import importing
from models.runs.reproducible import warm_up_elementwise
from models.runs.start import RunInterrupted
from models.training.signals import TrainingStopped

COMMANDS = (
    *(train, train_prior, encode, reconstruct, sample, evaluate),
    *(reproduce, convert, export, sweep, compare, report),
)
AFTER_INTERRUPTION = {
    train.run: "; go on with --resume",
    train_prior.run: "; go on with --resume",
    encode.run: "; run the same command again to go on",
    sweep.run: "; run the same command again to go on",
    reproduce.run: "; run the same command again to go on",
}


def main(arguments: Sequence[str] | None = None, prog: str = "python -m models") -> int:
    """Run one command and return its exit status.

    Mistakes in the input, and files that cannot be read or written, are printed in one line, with status 2.
    prog: how the command line was started, for its help.
    """
    parser = argparse.ArgumentParser(prog=prog, description="VAE, VQ-VAE, VQ-VAE-2 and their priors.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without a character is no failure
            stream.reconfigure(errors="backslashreplace")
    parsed = parser.parse_args(arguments)
    warm_up_elementwise()
    try:
        _check_processes(parsed.run)
        with importing(getattr(parsed, "allow_import", False)):
            parsed.run(parsed)
    except (ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {describe_os_error(error)}", file=sys.stderr)
        return 2
    except TrainingStopped as stop:
        print(f"stopped by {stop}, the run is saved{AFTER_INTERRUPTION.get(parsed.run, '')}", file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt as stop:
        # Before a training has its folder there is nothing to go on with.
        is_early = parsed.run in (train.run, train_prior.run) and not isinstance(stop, RunInterrupted)
        hint = "" if is_early else AFTER_INTERRUPTION.get(parsed.run, "")
        print(f"interrupted{hint}", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _check_processes(run: Callable[[argparse.Namespace], None]) -> None:
    """ValueError if several processes were started with a command that is one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and run not in (train.run, train_prior.run):
        raise ValueError(
            "torchrun started several processes, which would overwrite each other's files; accepted: `train` "
            "and `train-prior`; start other commands without torchrun"
        )


def describe_os_error(error: OSError) -> str:
    """The file and what is wrong with it; the message itself where it is ours."""
    if error.strerror is None:
        return str(error)
    paths = " to ".join(str(path) for path in (error.filename, error.filename2) if path is not None)
    return f"{paths}: {error.strerror}" if paths else error.strerror
