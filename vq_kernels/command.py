"""The console command ``vq-models``: the command line of ``models`` from any folder.

An install makes ``vq_kernels`` importable and nothing else, so that a project may have a ``models`` of its
own. ``models`` lies in the checkout of an editable install, which this command puts on the path.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def main() -> int:
    """Run the command line of ``models``; 2, with the reason, where the install is not of a checkout."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / "models" / "__main__.py").is_file():
        print(
            "error: vq-models needs a checkout of vq-kernels, as wheels hold vq_kernels alone; install one "
            "with `pip install -e '.[models]'`",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, str(checkout))
    try:
        status: int = import_module("models.cli").main(prog="vq-models")
    except KeyboardInterrupt:  # while it is imported, which takes a second or more
        print("interrupted", file=sys.stderr)
        return 130
    return status
