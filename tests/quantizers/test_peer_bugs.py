"""Bugs of other quantizers, each as a test that passes here; named after the bug."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vq_kernels.quantizers import FusedVectorQuantizer


def state(layer: FusedVectorQuantizer) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in layer.state_dict().items()}


def unchanged(layer: FusedVectorQuantizer, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_beta_weights_the_commitment_term_not_the_codebook_term() -> None:
    # MishaLaskin/vqvae, taming-transformers' legacy default, diffusers' VQModel.
    layer = FusedVectorQuantizer(
        6, 11, learnable_codebook=True, commitment_weight=0.25, codebook_weight=1.0, rotation_trick=False
    )
    x = torch.randn(40, 6, requires_grad=True)
    out = layer(x)
    out.loss.backward()
    codes = layer._codebook.embed.detach()[0][out.indices]  # [N, D]
    torch.testing.assert_close(out.loss, 1.25 * F.mse_loss(codes, x))
    torch.testing.assert_close(x.grad, 0.25 * 2 * (x.detach() - codes) / x.numel())
    expected = torch.zeros(11, 6).index_add_(0, out.indices, 2 * (codes - x.detach()) / x.numel())
    torch.testing.assert_close(layer._codebook.embed.grad[0], expected)


def test_smoothed_counts_are_not_written_back_and_do_not_compound() -> None:
    # zalando's notebook and pythae.
    layer = FusedVectorQuantizer(6, 11, decay=0.9, eps=0.5)
    expected = torch.ones(11)
    for _ in range(5):
        counts = torch.bincount(layer(torch.randn(64, 6)).indices, minlength=11)
        expected = 0.9 * expected + 0.1 * counts
    torch.testing.assert_close(layer._codebook.cluster_size[0], expected)


def test_revived_codes_are_not_overwritten_in_the_same_forward() -> None:
    # encodec's EMA divides embed_avg after revival and brings the dead vector back.
    layer = FusedVectorQuantizer(2, 3, threshold_ema_dead_code=0.5, decay=0.1)
    layer.codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, 50.0]])
    x = torch.tensor([[0.1, 0.0], [1.0, 0.9], [0.0, 0.2], [1.1, 1.0]])
    layer(x)
    revived = layer.codebook[2]
    assert (x == revived).all(1).any()
    assert torch.equal(layer._codebook.embed_avg[0, 2], revived * 0.5)
    assert layer._codebook.cluster_size[0, 2] == 0.5


class _LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operator returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self.largest = max(self.largest, t.numel())
        return out


@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True}, {"threshold_ema_dead_code": 2}], ids=str)
def test_nothing_of_size_n_by_k_is_built(options: dict[str, Any]) -> None:
    # Nearly all: an N x K one-hot and N x K distances.
    layer = FusedVectorQuantizer(4, 512, **options)
    x = torch.randn(1024, 4, requires_grad=True)
    with _LargestTensor() as seen:
        out = layer(x)
        (out.quantized.sum() + out.loss).backward()
    assert 0 < seen.largest <= 1024 * 4


@pytest.mark.parametrize(
    "options",
    [
        {"codebook_dim": 3},
        {"heads": 2, "codebook_dim": 4},
        {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True},
        {"heads": 2, "codebook_dim": 3},
    ],
    ids=["projection", "shared_heads", "separate_heads", "projection_and_heads"],
)
def test_mask_works_with_projection_and_heads(options: dict[str, Any]) -> None:
    # vector-quantize-pytorch raises.
    torch.manual_seed(1)
    masked = FusedVectorQuantizer(8, 16, **options)
    torch.manual_seed(1)
    cut = FusedVectorQuantizer(8, 16, **options)
    x, mask = torch.randn(3, 10, 8), torch.rand(3, 10) < 0.5
    out, expected = masked(x, mask=mask), cut(x[mask])
    torch.testing.assert_close(out.quantized[mask], expected.quantized)
    assert torch.equal(out.indices[mask], expected.indices)
    assert (out.quantized[~mask] == 0).all()
    assert (out.indices[~mask] == -1).all()
    torch.testing.assert_close(out.loss, expected.loss)
    for key, value in cut.state_dict().items():
        torch.testing.assert_close(masked.state_dict()[key], value)


def test_cosine_loss_does_not_change_with_an_all_true_mask() -> None:
    # vector-quantize-pytorch: 0.949 with the mask, 0.048 without.
    torch.manual_seed(1)
    masked = FusedVectorQuantizer(8, 16, use_cosine_sim=True)
    torch.manual_seed(1)
    plain = FusedVectorQuantizer(8, 16, use_cosine_sim=True)
    x = torch.randn(3, 10, 8)
    out, expected = masked(x, mask=torch.ones(3, 10, dtype=torch.bool)), plain(x)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(out.quantized, expected.quantized)


def test_kmeans_init_does_not_happen_in_eval() -> None:
    # vector-quantize-pytorch initialises, and so changes the codebook, in eval.
    layer = FusedVectorQuantizer(4, 8, kmeans_init=True).eval()
    before = state(layer)
    layer(torch.randn(20, 4))
    assert unchanged(layer, before)
    assert not layer._codebook.initted
    layer.train()(torch.randn(20, 4))
    assert layer._codebook.initted


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True}, {"threshold_ema_dead_code": 2.0}], ids=str)
def test_a_nan_row_does_not_reach_the_codebook(options: dict[str, Any], bad: float) -> None:
    layer = FusedVectorQuantizer(4, 8, **options)
    x = torch.randn(20, 4)
    x[7, 2] = bad
    out = layer(x)
    assert out.loss.isnan()
    assert out.quantized[7].isnan().all()
    assert out.indices[7] == 0
    assert out.quantized[torch.arange(20) != 7].isfinite().all()
    assert all(v.isfinite().all() for v in layer.state_dict().values())
    assert layer.last_counts.sum() == 19


@pytest.mark.parametrize(
    "options", [{}, {"threshold_ema_dead_code": 2}, {"learnable_codebook": True}], ids=str
)
@pytest.mark.parametrize("masked", [False, True], ids=["no_rows", "all_masked"])
def test_an_empty_batch_gives_loss_zero_and_leaves_the_codebook(
    options: dict[str, Any], masked: bool
) -> None:
    layer = FusedVectorQuantizer(4, 8, **options)
    layer(torch.randn(20, 4))
    before = state(layer)
    if masked:
        x, mask = torch.randn(3, 5, 4, requires_grad=True), torch.zeros(3, 5, dtype=torch.bool)
        out = layer(x, mask=mask)
    else:
        x = torch.randn(0, 5, 4, requires_grad=True)
        out = layer(x)
    (out.loss + out.quantized.sum()).backward()
    assert out.loss == 0
    assert out.quantized.shape == x.shape
    assert x.grad is not None
    assert (x.grad == 0).all()
    assert unchanged(layer, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 300.0, 3e4], ids=lambda s: f"scale_{s:g}")
@pytest.mark.parametrize("cosine", [False, True], ids=["l2", "cosine"])
def test_half_precision_inputs_give_no_nan(dtype: torch.dtype, scale: float, cosine: bool) -> None:
    # Issues 100, 114, 144, 145 of vector-quantize-pytorch. 300^2 and sums of many rows overflow float16.
    layer = FusedVectorQuantizer(4, 8, use_cosine_sim=cosine)
    x = (torch.rand(4096, 4) * scale).to(dtype)
    x[0] = 0
    x.requires_grad_()
    for _ in range(3):
        out = layer(x)
    out.loss.backward()
    assert out.quantized.dtype == dtype
    assert out.loss.dtype == torch.float32
    assert out.quantized.isfinite().all()
    assert out.loss.isfinite()
    assert x.grad.isfinite().all()
    assert all(v.isfinite().all() for v in layer.state_dict().values())


def test_cosine_of_large_float16_rows_is_that_of_their_float32_values() -> None:
    # Their norm overflows float16, and what is divided by infinity has no direction.
    layer = FusedVectorQuantizer(64, 64, use_cosine_sim=True).eval()
    layer.codebook = torch.eye(64)
    x = (torch.rand(50, 64) + 2 * torch.eye(64)[torch.randint(64, (50,))]).mul(2e4).half()
    assert torch.equal(layer(x).indices, x.argmax(1))


def test_indices_and_codes_agree_in_train_mode() -> None:
    # Issues 44, 71, 224: both belong to the codebook before the update.
    layer = FusedVectorQuantizer(4, 8)
    codes = layer.codebook.clone()
    out = layer(torch.randn(30, 4))
    assert torch.equal(out.quantized, codes[out.indices])
    assert not torch.equal(codes, layer.codebook)


@pytest.mark.parametrize("options", [{}, {"learnable_codebook": True}, {"kmeans_init": True}], ids=str)
@pytest.mark.parametrize("where", ["constructor", "forward"])
def test_a_frozen_codebook_stays(options: dict[str, Any], where: str) -> None:
    # Issues 42, 68, 93, 209.
    layer = FusedVectorQuantizer(
        4, 8, threshold_ema_dead_code=2, freeze_codebook=where == "constructor", **options
    )
    before = state(layer)
    call = {"freeze_codebook": True} if where == "forward" else {}
    out = layer(torch.randn(30, 4, requires_grad=True), **call)
    out.loss.backward()
    assert unchanged(layer, before)
    assert all(p.grad is None for p in layer.parameters())
    assert layer(torch.randn(30, 4), freeze_codebook=False).loss.isfinite()
    assert not unchanged(layer, before)


def test_the_same_input_gives_the_same_tokens_alone_and_in_a_batch() -> None:
    # FunCodec issue 9.
    layer = FusedVectorQuantizer(16, 200).eval()
    layer.codebook = torch.randn(200, 16)
    x = torch.randn(9, 50, 16)
    together = layer(x).indices
    assert torch.equal(together, torch.stack([layer(row).indices for row in x]))


def test_frozen_layers_and_eval_give_the_true_loss() -> None:
    layer = FusedVectorQuantizer(4, 8, commitment_weight=0.25).eval()
    x = torch.randn(30, 4)
    out = layer(x)
    torch.testing.assert_close(out.loss, 0.25 * F.mse_loss(out.quantized, x))


def test_a_backward_after_the_update_uses_the_codes_that_were_searched() -> None:
    layer = FusedVectorQuantizer(4, 8, rotation_trick=False)
    codes = layer.codebook.clone()
    x = torch.randn(30, 4, requires_grad=True)
    out = layer(x)
    layer(torch.randn(30, 4))
    out.loss.backward()
    torch.testing.assert_close(x.grad, 2 * (x.detach() - codes[out.indices]) / x.numel())


@pytest.mark.parametrize("options", [{}, {"use_cosine_sim": True}, {"threshold_ema_dead_code": 1.0}], ids=str)
def test_the_loss_of_a_frozen_encoder_has_a_backward_pass(options: dict[str, Any]) -> None:
    # As VectorQuantize's in training, which is made of a zero that requires a gradient.
    layer, x = FusedVectorQuantizer(4, 8, **options), torch.randn(30, 4)
    layer(x).loss.backward()
    assert x.grad is None
    assert not layer.eval()(x).loss.requires_grad
    with torch.no_grad():
        assert not layer.train()(x).loss.requires_grad
