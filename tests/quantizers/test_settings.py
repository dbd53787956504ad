"""What settings of the layer do to its codebook, its averages and its searches, against definitions."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vq_kernels.clustering import engine as kmeans_module
from vq_kernels.clustering.engine import kmeans
from vq_kernels.quantizers import FusedVectorQuantizer, codebook
from vq_kernels.quantizers import vector as vector_quantizer


def test_sizes_of_a_gradient_codebook_are_averaged_with_its_decay() -> None:
    layer = FusedVectorQuantizer(6, 13, learnable_codebook=True, threshold_ema_dead_code=1e-9, decay=0.9)
    sizes, averages = torch.ones(13), layer._codebook.embed_avg[0].clone()
    for _ in range(3):
        x = torch.randn(64, 6)
        indices = layer(x).indices
        sizes = 0.9 * sizes + 0.1 * torch.bincount(indices, minlength=13)
        averages = 0.9 * averages + 0.1 * torch.zeros(13, 6).index_add_(0, indices, x)
    torch.testing.assert_close(layer._codebook.cluster_size[0], sizes)
    torch.testing.assert_close(layer._codebook.embed_avg[0], averages)


def test_a_manual_update_revives_from_nothing_if_nothing_was_gathered_since_the_last() -> None:
    layer = FusedVectorQuantizer(2, 64, manual_ema_update=True, threshold_ema_dead_code=1.0, decay=0.5)
    layer(torch.rand(200, 2))
    layer.update_ema()
    far = torch.full((64, 2), 1e3) + torch.arange(64.0)[:, None]
    layer.codebook = far
    layer._codebook.cluster_size.fill_(0.5)
    layer.update_ema()
    assert torch.equal(layer.codebook, far)


def test_a_manual_update_revives_from_all_rows_since_the_last_alike() -> None:
    """The 4000 rows before that count no more: two batches of equal size give half of the codes each."""
    layer = FusedVectorQuantizer(2, 64, manual_ema_update=True, threshold_ema_dead_code=1.0, decay=0.5)
    layer(torch.rand(4000, 2))
    layer.update_ema()
    layer.codebook = torch.full((64, 2), 1e3) + torch.arange(64.0)[:, None]
    first, second = torch.rand(200, 2) - 2, torch.rand(200, 2) - 2
    layer(first)
    layer(second)
    layer.update_ema()
    revived = layer.codebook[1:]
    from_first, from_second = ((revived[:, None] == part).all(-1).any(1) for part in (first, second))
    assert (from_first ^ from_second).all()
    assert 11 < from_second.sum() < 52  # half of 63; 5 standard deviations


def test_codes_that_are_set_are_brought_to_unit_length_and_start_the_averages() -> None:
    codes = 5 * torch.randn(13, 6)
    layer = FusedVectorQuantizer(6, 13, use_cosine_sim=True)
    layer(torch.randn(500, 6))
    layer.codebook = codes
    unit = F.normalize(codes, dim=-1)
    torch.testing.assert_close(layer.codebook, unit)
    torch.testing.assert_close(layer._codebook.embed_avg[0], unit)
    assert torch.equal(layer._codebook.cluster_size[0], torch.ones(13))


@pytest.mark.parametrize("rounds", [1, 7])
@pytest.mark.parametrize("cosine", [False, True], ids=["l2", "cosine"])
def test_kmeans_init_runs_the_rounds_asked_for_and_fills_the_averages(cosine: bool, rounds: int) -> None:
    """With a decay of 1 the step after it changes nothing but by the smoothing."""
    x = torch.randn(300, 5)
    layer = FusedVectorQuantizer(
        5, 20, kmeans_init=True, kmeans_iters=rounds, decay=1.0, use_cosine_sim=cosine
    )
    torch.manual_seed(4)
    layer(x)
    torch.manual_seed(4)
    found = kmeans(
        F.normalize(x, dim=-1) if cosine else x,
        None,
        20,
        iterations=rounds,
        metric="cosine" if cosine else "l2",
        precision="exact",
        channel_dim=-1,
        backend=None,
        synchronized=False,
    )
    sizes = found.counts.clamp(min=1)
    torch.testing.assert_close(layer._codebook.cluster_size[0], sizes)
    torch.testing.assert_close(layer._codebook.embed_avg[0], found.means * sizes[:, None])
    torch.testing.assert_close(layer.codebook, found.means, rtol=1e-4, atol=1e-4)


def test_all_work_of_the_layer_takes_its_precision_and_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, dict[str, Any]] = {}

    def spy(place: ModuleType, name: str) -> None:
        original = getattr(place, name)

        def called(*arguments: Any, **named: Any) -> Any:
            seen[name] = {key: named[key] for key in ("precision", "backend") if key in named}
            return original(*arguments, **named)

        monkeypatch.setattr(place, name, called)

    spy(vector_quantizer, "vector_quantize")
    spy(codebook, "ema_update_")
    spy(kmeans_module, "nearest_code")
    spy(kmeans_module, "code_statistics")
    layer = FusedVectorQuantizer(6, 13, precision="high", backend="reference", kmeans_init=True)
    layer(torch.randn(30, 6))
    searches, sums = {"precision": "high", "backend": "reference"}, {"backend": "reference"}
    assert seen == {
        "vector_quantize": searches,
        "ema_update_": sums,
        "nearest_code": searches,
        "code_statistics": sums,
    }


@pytest.mark.parametrize("how", ["eval", "frozen"])
def test_codes_that_do_not_learn_get_no_gradient(how: str) -> None:
    layer = FusedVectorQuantizer(
        6, 13, learnable_codebook=True, codebook_weight=1.0, freeze_codebook=how == "frozen"
    )
    out = layer.train(how == "frozen")(torch.randn(30, 6, requires_grad=True))
    (out.loss + out.quantized.sum()).backward()
    assert layer._codebook.embed.grad is None
