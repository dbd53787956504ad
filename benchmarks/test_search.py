"""Nearest-code search against every peer, one group a shape; results are compared before timing."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from .agreement import check_against_float64, check_indices
from .compare import PRECISION_UNITS
from .peers import our_search, search_peers
from .pytest_timing import time_call
from .work import Case, make_inputs

CASES = [
    Case(16384, 8, 128),
    Case(16384, 64, 512),
    Case(4096, 64, 8192),
    Case(4096, 256, 8192),
]
LARGE = [Case(65536, 64, 8192), Case(65536, 256, 8192), Case(262144, 64, 512)]
PARAMETERS = [
    *(pytest.param(c, id=c.shape.replace(" ", "-")) for c in CASES),
    *(pytest.param(c, id=c.shape.replace(" ", "-"), marks=pytest.mark.large) for c in LARGE),
]
PEERS = [peer.name for peer in search_peers("cuda" if torch.cuda.is_available() else "cpu")]


@cache
def inputs(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """x, codebook and our exact indices, themselves checked in float64."""
    x, codebook = make_inputs(case, device)
    exact = our_search(x, codebook)()
    check_against_float64(x, codebook, exact)
    return x, codebook, exact


@pytest.mark.parametrize("case", PARAMETERS)
@pytest.mark.parametrize("precision", PRECISION_UNITS)
def test_ours(benchmark: Any, case: Case, precision: str, device: str) -> None:
    x, codebook, exact = inputs(case, device)
    search = our_search(x, codebook, precision=precision)
    unit = PRECISION_UNITS[precision]
    benchmark.extra_info["differing_rows"] = check_indices(x, codebook, exact, search(), input_unit=unit)
    benchmark.group = f"search {case.shape}"
    time_call(benchmark, search, device)


@pytest.mark.parametrize("case", PARAMETERS)
@pytest.mark.parametrize("name", PEERS)
def test_peer(benchmark: Any, case: Case, name: str, device: str) -> None:
    (peer,) = [peer for peer in search_peers(device, case.dtype) if peer.name == name]
    if peer.reason is not None:
        pytest.skip(peer.reason)
    x, codebook, exact = inputs(case, device)
    search = peer.prepare(x, codebook)
    units = {"input_unit": peer.input_unit, "output_unit": peer.output_unit}
    benchmark.extra_info["differing_rows"] = check_indices(
        x, codebook, exact, search(), ours_is_exact=True, **units
    )
    benchmark.group = f"search {case.shape}"
    time_call(benchmark, search, device)
