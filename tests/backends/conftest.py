"""What tests of single backends share."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from conftest import DEVICE
from native_support import ISAS, PATHS

from vq_kernels.backends import native


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the cases of a test on a path that does not run here, one is left, which skips with the reason.

    Six thousand of them took as long as the tests on one of the paths that do. What an emulator runs is of
    another processor, and stays.
    """
    features = {} if native.unavailable_reason() else native.cpu_features()
    usable = set(features.get("machine", ())) & set(features.get("compiled", ()))
    missing = {name for name, (isa, _) in PATHS.items() if isa not in usable} | (set(ISAS) - usable)
    seen: set[tuple[object, ...]] = set()
    kept, left_out = [], []
    for item in items:
        here = hasattr(item, "callspec") and "emulator" not in getattr(item, "fixturenames", ())
        values = item.callspec.params.values() if here else ()
        path = next((v for v in values if isinstance(v, str) and v in missing), None)
        case = item.path, getattr(item, "originalname", None), path
        (left_out if path is not None and case in seen else kept).append(item)
        seen.add(case)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture(autouse=True)
def _few_rows_as_many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels for many rows are tested with few; on a GPU another kernel would take them (``few.py``)."""
    if DEVICE == "cuda" and find_spec("triton") is not None and request.path.name != "test_triton_few.py":
        from vq_kernels.backends.triton import few

        monkeypatch.setattr(few, "limits", lambda architecture: (0, 0))
