"""``python -m benchmarks.tune``. Worker processes import what they run by name, so it lives in ``run.py``."""

import sys

from .run import main

sys.exit(main())
