"""Lloyd's k-means against its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vq_kernels.clustering.draw import draw_rows
from vq_kernels.clustering.engine import kmeans


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


def test_spherical_kmeans_equals_its_definition() -> None:
    """Rows of all lengths: they weigh in the sums, the means have unit length."""
    x = torch.randn(300, 5) * (torch.rand(300, 1) * 9 + 0.1)
    torch.manual_seed(4)
    drawn = draw_rows(x, None, 20, channel_dim=-1, synchronized=False, repeat=True)
    means = F.normalize(drawn.rows.double(), dim=-1)
    for _ in range(6):
        assigned = (x.double() @ means.T).argmax(1)
        sums = torch.zeros(20, 5, dtype=torch.float64).index_add_(0, assigned, x.double())
        kept = torch.bincount(assigned, minlength=20) > 0
        means = torch.where(kept[:, None], F.normalize(sums, dim=-1), means)
    torch.manual_seed(4)
    found = kmeans(
        x,
        None,
        20,
        iterations=6,
        metric="cosine",
        precision="exact",
        channel_dim=-1,
        backend=None,
        synchronized=False,
    )
    torch.testing.assert_close(found.means, means.float(), rtol=1e-5, atol=1e-6)


class LargestResult(TorchDispatchMode):
    """The most elements of a tensor that an operation inside makes; views make none."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            addresses = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
            if result.untyped_storage().data_ptr() not in addresses:
                self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("channel_dim", [-1, 1])
def test_rows_that_are_not_finite_are_left_out_without_a_copy_of_x(channel_dim: int) -> None:
    """Besides memory a copy of a large x is time in which Ctrl-C is not heard."""
    x = torch.randn(4, 50, 40)
    for number, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        x[number, number, 7 * number] = value
    clean = x[x.isfinite().all(-1)]
    rows = x if channel_dim == -1 else x.transpose(1, 2).contiguous()
    with LargestResult() as largest:
        clusters = kmeans(
            rows,
            None,
            1,
            iterations=1,
            metric="l2",
            precision="exact",
            channel_dim=channel_dim,
            backend=None,
            synchronized=False,
        )
    assert clusters.total == clusters.counts == len(clean) == 197
    torch.testing.assert_close(clusters.means[0], clean.mean(0), rtol=1e-5, atol=1e-6)
    assert largest.elements < x.numel() / 10
