"""The command line: one file a command, each with ``add_parser`` and ``run``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from models.cli import convert, encode, evaluate, reconstruct, reproduce, sample, train, train_prior
from models.reproducible import settle_first_calls

COMMANDS = (train, train_prior, encode, reconstruct, sample, evaluate, reproduce, convert)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Mistakes in the input are printed in one line, with exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m models", description="VAE, VQ-VAE, VQ-VAE-2 and their priors."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    given = parser.parse_args(arguments)
    settle_first_calls()
    try:
        given.run(given)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; go on with --resume", file=sys.stderr)
        return 130
    return 0
