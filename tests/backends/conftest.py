"""What tests of single backends share."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from conftest import DEVICE


@pytest.fixture(autouse=True)
def _few_rows_as_many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels for many rows are tested with few; on a GPU another kernel would take them (``few.py``)."""
    if DEVICE == "cuda" and find_spec("triton") is not None and request.path.name != "test_triton_few.py":
        from vq_kernels.backends.triton import few

        monkeypatch.setattr(few, "limits", lambda architecture: (0, 0))
