"""A pytest plugin: a worker that meets a fatal fault of the GPU ends, as every later test would fail there.

pytest-xdist counts the test as failed and starts another worker, up to ``--max-worker-restart``.
"""

from __future__ import annotations

import os
import sys

import pytest

from .faults import FATAL, is_fatal


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    yield
    if call.excinfo is not None and is_fatal(call.excinfo.value) and hasattr(item.config, "workerinput"):
        print(f"fatal fault in {item.nodeid}: {call.excinfo.value}", file=sys.__stderr__, flush=True)
        os._exit(FATAL)
