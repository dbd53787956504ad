"""Drawing rows of the batch: each as often as any other, none twice, in every layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vq_kernels.clustering.draw import draw_rows, take_rows

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
