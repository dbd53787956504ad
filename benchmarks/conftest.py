"""``pytest benchmarks --benchmark-only``; ``--large`` adds the sizes that take minutes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from . import machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--large", action="store_true", help="benchmarks: also the large problems")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: a problem that takes minutes; run with --large")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--large"):
        for item in items:
            if item.get_closest_marker("large"):
                item.add_marker(pytest.mark.skip(reason="large; run with --large"))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """In saved results, the machine is described as everywhere here, without its host name."""
    machine_info.clear()
    machine_info.update(machine.describe("cuda" if torch.cuda.is_available() else "cpu"))


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
