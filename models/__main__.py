"""``python -m models``."""

import sys


def _run() -> int:
    try:
        from models.cli import main  # takes a second or more, in which one may press Ctrl-C

        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(_run())
