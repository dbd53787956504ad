"""Initialisation by k-means, revival of dead codes, and the drawing of rows that both use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vq_kernels.clustering.draw import draw_rows, take_rows
from vq_kernels.clustering.engine import kmeans
from vq_kernels.quantizers import FusedVectorQuantizer

LAYOUTS = {
    "rows": (-1, lambda: torch.randn(105, 4)),
    "channel_last": (-1, lambda: torch.randn(5, 21, 4)),
    "channel_first": (1, lambda: torch.randn(5, 4, 7, 3)),
    "sliced": (-1, lambda: torch.randn(5, 42, 9)[:, ::2, 2:6]),
    "three_spatial": (1, lambda: torch.randn(7, 4, 5, 3, 1)),
}


def rows_of(x: Tensor, channel_dim: int) -> Tensor:
    return x.movedim(channel_dim, -1).reshape(-1, x.shape[channel_dim])


def found_in(rows: Tensor, pool: Tensor) -> Tensor:
    """Position in ``pool`` of each row, which must be there."""
    same = (rows[:, None] == pool[None]).all(-1)
    assert same.any(1).all()
    return same.to(torch.uint8).argmax(1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_taken_by_number_in_every_layout(layout: str) -> None:
    channel_dim, make = LAYOUTS[layout]
    x = make()
    numbers = torch.tensor([0, 104, 3, 50, 3])
    assert torch.equal(take_rows(x, numbers, channel_dim), rows_of(x, channel_dim)[numbers])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("number", [1, 2, 63, 104, 105])
def test_no_row_is_drawn_twice_while_there_are_enough(layout: str, number: int) -> None:
    channel_dim, make = LAYOUTS[layout]
    x = make()
    drawn = draw_rows(x, None, number, channel_dim=channel_dim, synchronized=False)
    assert drawn.usable.all()
    assert drawn.total == 105
    assert found_in(drawn.rows, rows_of(x, channel_dim)).unique().numel() == number


@pytest.mark.parametrize("rows", [0, 1, 10, 30])
def test_with_fewer_rows_than_asked_for_each_is_drawn_once_and_places_wait(rows: int) -> None:
    x = torch.randn(50, 4)
    mask = torch.zeros(50, dtype=torch.bool)
    mask[torch.randperm(50)[:rows]] = True
    drawn = draw_rows(x, mask, 31, channel_dim=-1, synchronized=False)
    assert drawn.usable.sum() == rows
    assert drawn.total == rows
    assert (drawn.rows[~drawn.usable] == 0).all()
    if rows:
        assert found_in(drawn.rows[drawn.usable], x[mask]).unique().numel() == rows


def test_every_row_is_drawn_equally_often_for_every_place() -> None:
    x = torch.arange(8.0)[:, None]
    hits = torch.zeros(3, 8)
    for _ in range(2400):
        rows = draw_rows(x, None, 3, channel_dim=-1, synchronized=False).rows[:, 0].long()
        hits[torch.arange(3), rows] += 1
    assert (hits - 300).abs().max() < 100  # 6 standard deviations


def test_rows_with_nan_are_not_usable() -> None:
    x = torch.randn(20, 4)
    x[::2, 1] = torch.nan
    drawn = draw_rows(x, None, 20, channel_dim=-1, synchronized=False)
    assert drawn.usable.sum() == 10
    assert drawn.rows.isfinite().all()


def blobs(centres: Tensor, per_blob: int) -> Tensor:
    rows = centres.repeat(per_blob, 1) + 0.01 * torch.randn(per_blob * len(centres), centres.shape[1])
    return rows[torch.randperm(len(rows))]


def test_kmeans_equals_lloyd_from_the_same_seeds() -> None:
    x = torch.randn(300, 5)
    torch.manual_seed(4)
    means = draw_rows(x, None, 20, channel_dim=-1, synchronized=False, repeat=True).rows.double()
    for _ in range(6):
        assigned = torch.cdist(x.double(), means).argmin(1)
        counts = torch.bincount(assigned, minlength=20)
        sums = torch.zeros(20, 5, dtype=torch.float64).index_add_(0, assigned, x.double())
        means = torch.where((counts > 0)[:, None], sums / counts.clamp(min=1)[:, None], means)
    torch.manual_seed(4)
    found = kmeans(
        x,
        None,
        20,
        iterations=6,
        metric="l2",
        precision="exact",
        channel_dim=-1,
        backend=None,
        synchronized=False,
    )
    torch.testing.assert_close(found.means, means.float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(found.counts, counts.float())


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
