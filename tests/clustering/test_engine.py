"""Lloyd's k-means against its definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F

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
