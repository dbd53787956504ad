"""Initialisation of the layer by k-means, and revival of its dead codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vq_kernels.quantizers import FusedVectorQuantizer


def blobs(centres: Tensor, per_blob: int) -> Tensor:
    rows = centres.repeat(per_blob, 1) + 0.01 * torch.randn(per_blob * len(centres), centres.shape[1])
    return rows[torch.randperm(len(rows))]


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cosine_sim": True}, {"heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True}],
    ids=["plain", "cosine", "separate_heads"],
)
@pytest.mark.parametrize("channel_last", [True, False], ids=["last", "first"])
def test_kmeans_init_starts_from_the_first_training_batch(
    options: dict[str, Any], channel_last: bool
) -> None:
    layer = FusedVectorQuantizer(6, 8, kmeans_init=True, channel_last=channel_last, **options)
    assert (layer.codebook == 0).all()
    x = blobs(torch.randn(8, 6), 16)  # [128, 6]
    mask = torch.rand(8, 16) < 0.9
    x = x.view(8, 16, 6)
    x[~mask] = 1e4  # would draw a mean if it were looked at
    x[0, 0], mask[0, 0] = torch.nan, True
    out = layer(x if channel_last else x.movedim(-1, 1), mask=mask)
    assert layer._codebook.initted
    assert layer.codebook.isfinite().all()
    assert layer.codebook.abs().max() < 10
    assert out.indices.unique().numel() > 4
    codes = layer.codebook.clone()
    layer(torch.randn(0, 6) if channel_last else torch.randn(0, 6, 2))
    assert torch.equal(layer.codebook, codes)  # no second initialisation


def test_kmeans_finds_well_separated_clusters() -> None:
    centres = 10 * torch.randn(4, 6)
    layer = FusedVectorQuantizer(6, 16, kmeans_init=True, decay=0.5)
    out = layer(blobs(centres, 32))
    assert out.loss < 0.01


def test_kmeans_with_fewer_rows_than_codes_keeps_all_codes_usable() -> None:
    layer = FusedVectorQuantizer(4, 32, kmeans_init=True)
    x = torch.randn(5, 4)
    out = layer(x)
    torch.testing.assert_close(out.quantized, x)
    torch.testing.assert_close(layer(x).quantized, x, rtol=1e-2, atol=1e-2)
    # A mean that took no row stays near the row it started from instead of dropping to zero.
    assert layer.codebook.norm(dim=1).min() > 0.5 * x.norm(dim=1).min()


@pytest.mark.parametrize("first", ["no_rows", "all_masked", "all_nan"])
def test_an_empty_first_batch_defers_kmeans(first: str) -> None:
    layer = FusedVectorQuantizer(4, 8, kmeans_init=True)
    x, call = torch.randn(3, 5, 4), {}
    if first == "no_rows":
        x = x[:0]
    elif first == "all_masked":
        call = {"mask": torch.zeros(3, 5, dtype=torch.bool)}
    else:
        x = torch.full((3, 5, 4), torch.nan)
    layer(x, **call)
    assert not layer._codebook.initted
    assert (layer.codebook == 0).all()
    layer(torch.randn(3, 5, 4))
    assert layer._codebook.initted
    assert layer.codebook.norm(dim=-1).min() > 0


@pytest.mark.parametrize("learnable", [False, True], ids=["ema", "learnable"])
def test_kmeans_init_of_a_loaded_layer_depends_on_the_checkpoint(learnable: bool) -> None:
    options: dict[str, Any] = {"kmeans_init": True, "learnable_codebook": learnable}
    fresh, trained = FusedVectorQuantizer(4, 8, **options), FusedVectorQuantizer(4, 8, **options)
    untouched = {k: v.clone() for k, v in fresh.state_dict().items()}
    trained(torch.randn(30, 4))
    fresh.load_state_dict(trained.state_dict())
    codes = fresh.codebook.clone()
    fresh(torch.randn(30, 4), freeze_codebook=False)
    assert not fresh._codebook.needs_init
    if learnable:
        assert torch.equal(fresh.codebook, codes)
    fresh.load_state_dict(untouched)
    assert fresh._codebook.needs_init
    fresh(torch.randn(30, 4))
    assert fresh._codebook.initted


@pytest.mark.parametrize("channel_last", [True, False], ids=["last", "first"])
@pytest.mark.parametrize("cosine", [False, True], ids=["l2", "cosine"])
def test_dead_codes_become_distinct_unmasked_rows_of_the_batch(channel_last: bool, cosine: bool) -> None:
    layer = FusedVectorQuantizer(
        4, 12, threshold_ema_dead_code=0.7, decay=0.5, channel_last=channel_last, use_cosine_sim=cosine
    )
    layer.codebook = torch.tensor([[1.0, 1, 1, 1]] + 11 * [[-1.0, -1, -1, -1]])
    x = torch.rand(4, 10, 4) + 0.1
    mask = torch.rand(4, 10) < 0.8
    x[0, 0, 0], mask[0, 0] = torch.nan, True
    layer(x if channel_last else x.movedim(-1, 1), mask=mask)
    pool = x[mask & x.isfinite().all(-1)]
    if cosine:
        pool = torch.nn.functional.normalize(pool, dim=-1)
        pool = torch.nn.functional.normalize(pool, dim=-1)
    changed = (layer.codebook > 0).all(1)
    assert changed.sum() >= 11  # the alive one and all dead ones but that which drew the NaN row
    dead = torch.arange(12) > 0
    revived = layer.codebook[changed & dead]
    distance = (revived[:, None] - pool).abs().amax(-1)
    assert distance.amin(1).max() < 1e-6
    assert distance.argmin(1).unique().numel() == len(revived)
    assert (layer._codebook.cluster_size[0][changed & dead] == 0.7).all()
    torch.testing.assert_close(layer._codebook.embed_avg[0][changed & dead], revived * 0.7)


def test_codes_at_the_threshold_live() -> None:
    layer = FusedVectorQuantizer(2, 2, threshold_ema_dead_code=1.0, decay=1.0)
    layer.codebook = torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    layer(torch.rand(10, 2))
    torch.testing.assert_close(layer.codebook, torch.tensor([[0.0, 0.0], [9.0, 9.0]]))


def test_revival_keeps_a_large_codebook_in_use() -> None:
    # Issues 19, 170, 223 of vector-quantize-pytorch: codebook collapse.
    collapsed, revived = (FusedVectorQuantizer(4, 64, threshold_ema_dead_code=t) for t in (0.0, 0.5))
    for _ in range(20):
        x = torch.randn(512, 4) + 3
        collapsed(x)
        revived(x)
    assert collapsed.usage < 0.5
    assert revived.usage > 0.9
