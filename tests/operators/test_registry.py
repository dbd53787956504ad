"""How schemas are made from the classes of options, and what old callers of an operator rely on."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

import vq_kernels as vq
from vq_kernels.backends import QuantizeOptions
from vq_kernels.operators.quantize import vector_quantize
from vq_kernels.operators.registry import options_schema


class Options(NamedTuple):
    metric: str
    backend: str | None
    statistics: bool = True
    temperature: float = 0.5
    stages: int = 3
    gradient: str = "straight_through"


def test_options_become_the_arguments_of_a_schema() -> None:
    assert options_schema(Options) == (
        "str metric, str? backend, bool statistics=True, float temperature=0.5, int stages=3, "
        'str gradient="straight_through"'
    )


def test_programs_exported_by_release_0_1_0_find_every_argument_and_result() -> None:
    """They hold operators by name and arguments by position: these nine, and seven results."""
    x, codebook = torch.randn(9, 4), torch.randn(5, 4)
    old = (x, codebook, None, "l2", "exact", -1, True, True, "reference")
    for packet in (torch.ops.vq_kernels.vector_quantize, torch.ops.vq_kernels.vector_quantize.default):
        quantized, indices, mse, valid_rows, counts, sums, copy = packet(*old)
        want = vq.vector_quantize(x, codebook)
        assert torch.equal(quantized, want.quantized)
        assert torch.equal(indices, want.indices)
        torch.testing.assert_close(mse, want.loss)
        assert valid_rows == 9
        assert torch.equal(counts, want.counts)
        torch.testing.assert_close(sums, want.sums)
        assert torch.equal(copy, codebook)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.25, 0.0), (0.25, 0.5), (0.0, 0.0)])
def test_the_operator_gives_the_weighted_loss(
    weights: tuple[float, float], backend: str, device: torch.device
) -> None:
    x, codebook = torch.randn(9, 4, device=device), torch.randn(5, 4, device=device)
    plain = QuantizeOptions("l2", "exact", -1, False, False, backend)
    weighted = plain._replace(commitment_weight=weights[0], codebook_weight=weights[1])
    mse = vector_quantize(x, codebook, None, plain).loss
    torch.testing.assert_close(vector_quantize(x, codebook, None, weighted).loss, sum(weights) * mse)
