"""How the codebook learns: micro-batches, gradient codebooks, metrics, number formats."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vq_kernels.quantizers import FusedVectorQuantizer, perplexity, usage


def seeded(**options: Any) -> FusedVectorQuantizer:
    torch.manual_seed(3)
    return FusedVectorQuantizer(6, 13, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cosine_sim": True}, {"heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True}],
    ids=["plain", "cosine", "separate_heads"],
)
def test_micro_batches_with_one_manual_update_equal_one_large_batch(options: dict[str, Any]) -> None:
    # Issue 221 of vector-quantize-pytorch: EMA under gradient accumulation.
    large, small = seeded(**options), seeded(manual_ema_update=True, **options)
    for _ in range(3):
        x = torch.randn(60, 6)
        large(x)
        before = small.codebook.clone()
        for part in x.split([31, 0, 29]):
            small(part)
        assert torch.equal(small.codebook, before)
        small.update_ema()
        for key, value in large.state_dict().items():
            torch.testing.assert_close(small.state_dict()[key], value)
        assert torch.equal(small.last_counts, large.last_counts)


def test_manual_update_applies_each_batch_once() -> None:
    layer = seeded(manual_ema_update=True)
    layer(torch.randn(60, 6))
    layer.update_ema()
    before = copy.deepcopy(layer.state_dict())
    layer.update_ema()
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_manual_update_revives_from_all_micro_batches() -> None:
    layer = FusedVectorQuantizer(2, 64, manual_ema_update=True, threshold_ema_dead_code=1.0, decay=0.5)
    layer.codebook = torch.full((64, 2), 1e3) + torch.arange(64.0)[:, None]
    first, second = torch.rand(300, 2), torch.rand(100, 2) - 2
    layer(first)
    layer(second)
    layer.update_ema()
    revived = layer.codebook[1:]
    from_first = (revived[:, None] == first).all(-1).any(1)
    from_second = (revived[:, None] == second).all(-1).any(1)
    assert (from_first ^ from_second).all()
    assert 28 < from_first.sum() < 62  # three in four of 63; 5 standard deviations


def test_update_ema_without_manual_mode_says_so() -> None:
    with pytest.raises(RuntimeError, match="manual_ema_update"):
        seeded().update_ema()


CALLS_BEFORE: dict[str, dict[str, Any]] = {
    "ema": {},
    "projection": {"codebook_dim": 4},
    "kmeans": {"kmeans_init": True, "learnable_codebook": True},
    "revival": {"learnable_codebook": True, "threshold_ema_dead_code": 20},
    "cosine": {"use_cosine_sim": True},
}


def loss_of(called: Callable[..., Any], x: Tensor, frozen: bool) -> Tensor:
    out = called(x, freeze_codebook=frozen)
    return out.loss + out.quantized.sin().sum()


@pytest.mark.parametrize("how", ["eager", "eval", "one graph", "two graphs"])
@pytest.mark.parametrize("options", CALLS_BEFORE.values(), ids=CALLS_BEFORE)
def test_a_call_may_learn_before_the_backward_pass_of_another(options: dict[str, Any], how: str) -> None:
    """The gradient of the first call is towards the codes that it found, in compiled graphs too."""
    torch._dynamo.reset()
    layer = FusedVectorQuantizer(8, 16, decay=0.5, **options)
    x, y = torch.randn(20, 8), torch.randn(200, 8)
    if "kmeans_init" in options:
        layer.load_state_dict(layer.state_dict() | {"_codebook.embed": torch.randn(1, 16, 8)})
    before = layer.codebook.detach().clone()
    alone, leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss_of(copy.deepcopy(layer), alone, True).backward()
    if how == "one graph":
        step = torch.compile(
            lambda: loss_of(layer, leaf, True) + loss_of(layer, y, False),
            fullgraph=True,
            backend="aot_eager",
        )
        loss = step()
    else:
        called = torch.compile(layer, backend="eager") if how == "two graphs" else layer
        layer.train(how != "eval")
        loss = loss_of(called, leaf, True)
        layer.train()
        loss = loss + loss_of(called, y, False)
    loss.backward()
    assert not torch.equal(layer.codebook, before)
    torch.testing.assert_close(leaf.grad, alone.grad)


def test_a_manual_update_may_come_before_the_backward_pass() -> None:
    layer = FusedVectorQuantizer(8, 16, decay=0.5, manual_ema_update=True)
    leaf, alone = torch.randn(20, 8, requires_grad=True), copy.deepcopy(layer)
    (want,) = torch.autograd.grad(loss_of(alone, leaf, False), leaf)
    loss = loss_of(layer, leaf, False)
    layer.update_ema()
    assert not torch.equal(layer.codebook, alone.codebook)
    assert torch.equal(torch.autograd.grad(loss, leaf)[0], want)


def test_learnable_codebook_trains_by_gradient_and_matches_autograd() -> None:
    layer = seeded(learnable_codebook=True, rotation_trick=False, commitment_weight=0.5, codebook_weight=2.0)
    x = torch.randn(40, 6, requires_grad=True)
    out = layer(x)
    (out.loss + (out.quantized**3).sum()).backward()

    codes = layer.codebook.detach().clone().requires_grad_()
    y = x.detach().clone().requires_grad_()
    e = codes[out.indices]
    loss = 0.5 * F.mse_loss(e.detach(), y) + 2.0 * F.mse_loss(e, y.detach())
    (loss + ((y + (e - y).detach()) ** 3).sum()).backward()
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(layer._codebook.embed.grad[0], codes.grad)


def test_learnable_cosine_codes_are_searched_at_unit_length() -> None:
    layer = seeded(learnable_codebook=True, use_cosine_sim=True)
    with torch.no_grad():
        layer._codebook.embed.mul_(torch.rand(1, 13, 1) * 9 + 0.1)
    x = torch.randn(40, 6)
    out = layer(x)
    torch.testing.assert_close(out.quantized.norm(dim=-1), torch.ones(40))
    expected = F.cosine_similarity(x.double()[:, None], layer._codebook.embed.double(), dim=-1).argmax(-1)
    assert torch.equal(out.indices, expected)
    out.loss.backward()
    # Unit length leaves no gradient along a code.
    along = (layer._codebook.embed.grad * layer._codebook.embed).sum(-1)
    torch.testing.assert_close(along, torch.zeros(1, 13), atol=1e-7, rtol=0)
    assert layer._codebook.embed.grad.abs().sum() > 0


def test_dead_codes_of_a_gradient_codebook_are_revived() -> None:
    layer = FusedVectorQuantizer(2, 4, learnable_codebook=True, threshold_ema_dead_code=0.6, decay=0.5)
    layer.codebook = torch.tensor([[0.0, 0], [99, 99], [98, 98], [97, 97]])
    x = torch.rand(30, 2, requires_grad=True)
    out = layer(x)
    out.loss.backward()  # the codes that were searched are still there for it
    assert layer._codebook.embed.grad is not None
    assert torch.equal(layer.codebook[0], torch.zeros(2))
    assert all((x.detach() == code).all(1).any() for code in layer.codebook[1:])


def test_perplexity_and_usage_come_from_the_counts_of_the_last_training_batch() -> None:
    layer = seeded()
    indices = layer(torch.randn(50, 6)).indices
    counts = torch.bincount(indices, minlength=13)
    assert torch.equal(layer.last_counts[0], counts)
    p = counts / 50
    torch.testing.assert_close(layer.perplexity, torch.exp(-(p * torch.log(p + 1e-10)).sum()))
    torch.testing.assert_close(layer.usage, (counts > 0).float().mean())
    layer.eval()(torch.randn(9, 6))
    assert torch.equal(layer.last_counts[0], counts)
    layer.train()(torch.randn(20, 6), freeze_codebook=True)
    assert layer.last_counts.sum() == 20


def test_metrics_of_known_counts() -> None:
    torch.testing.assert_close(perplexity(torch.tensor([5, 5, 5, 5])), torch.tensor(4.0))
    torch.testing.assert_close(perplexity(torch.tensor([7, 0, 0, 0])), torch.tensor(1.0))
    torch.testing.assert_close(perplexity(torch.tensor([[5, 5], [9, 0]])), torch.tensor(1.5))
    torch.testing.assert_close(perplexity(torch.zeros(4)), torch.tensor(1.0))
    assert usage(torch.tensor([3, 0, 1, 0])) == 0.5


@pytest.mark.parametrize("options", [{}, {"codebook_dim": 3}, {"use_cosine_sim": True}], ids=str)
def test_autocast_leaves_search_and_codebook_in_float32(options: dict[str, Any]) -> None:
    plain, cast = seeded(**options), seeded(**options)
    x = torch.randn(4, 50, 6)
    expected = plain(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = cast(x)
    assert out.loss.dtype == torch.float32
    assert cast.codebook.dtype == torch.float32
    if "codebook_dim" in options:
        assert out.quantized.dtype == torch.bfloat16
    else:
        assert torch.equal(out.indices, expected.indices)
        assert torch.equal(out.quantized, expected.quantized)
        assert torch.equal(cast.codebook, plain.codebook)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_the_model_leaves_the_codebook_in_float32(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(6, 6), seeded(codebook_dim=3)).to(dtype)
    layer = model[1]
    assert isinstance(layer, FusedVectorQuantizer)
    assert layer.project_in.weight.dtype == dtype
    assert {v.dtype for k, v in layer._codebook.state_dict().items() if k != "initted"} == {torch.float32}
    out = model(torch.randn(20, 6, dtype=dtype))
    assert out.quantized.dtype == dtype
    out.loss.backward()
    assert all(v.isfinite().all() for v in model.state_dict().values())


def test_float64_gradients_with_indices_held_fixed() -> None:
    layer = seeded(rotation_trick=False, commitment_weight=0.3).eval()
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: layer(t).loss, (x,))


@pytest.mark.parametrize("options", [{}, {"manual_ema_update": True}, {"kmeans_init": True}], ids=str)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_behave_alike_and_apart(options: dict[str, Any], how: str) -> None:
    layer = seeded(**options)
    layer(torch.randn(30, 6))
    clone = copy.deepcopy(layer) if how == "deepcopy" else pickle.loads(pickle.dumps(layer))
    x = torch.randn(30, 6)
    expected, actual = layer(x), clone(x)
    assert torch.equal(actual.quantized, expected.quantized)
    if options == {"manual_ema_update": True}:
        layer.update_ema()
        clone.update_ema()
    assert torch.equal(clone.codebook, layer.codebook)
    layer.codebook = torch.zeros(13, 6)
    assert not torch.equal(clone.codebook, layer.codebook)


def test_setting_the_codebook_starts_the_averages_again() -> None:
    layer = FusedVectorQuantizer(6, 13, kmeans_init=True)
    codes = torch.randn(13, 6)
    layer.codebook = codes
    assert torch.equal(layer.codebook, codes)
    out = layer(codes)  # each code takes itself, so nothing moves but by the smoothing
    assert torch.equal(out.indices, torch.arange(13))
    torch.testing.assert_close(layer.codebook, codes, atol=1e-4, rtol=1e-4)


def test_training_without_gradients_updates_the_codebook() -> None:
    layer = seeded()
    before = layer.codebook.clone()
    with torch.no_grad():
        layer(torch.randn(30, 6))
    assert not torch.equal(layer.codebook, before)
    before = layer.codebook.clone()
    with torch.inference_mode():
        layer(torch.randn(30, 6))
        layer.eval()(torch.randn(30, 6))
    assert not torch.equal(layer.codebook, before)
    layer.train()(torch.randn(30, 6, requires_grad=True)).loss.backward()


@pytest.mark.parametrize("decay", [0.8, 0.99])
def test_a_cosine_code_without_rows_keeps_its_direction(
    decay: float, backend: str, device: torch.device
) -> None:
    """vector-quantize-pytorch's loses its unit length (its norm is clamped at 1e-6) and is 0 in the end."""
    layer = FusedVectorQuantizer(4, 2, use_cosine_sim=True, decay=decay, backend=backend).to(device)
    layer.codebook = torch.tensor([[1.0, 0.0, 0.0, 0.0], [-0.6, 0.8, 0.0, 0.0]], device=device)
    book = layer._codebook
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=device)
    steps = [400, 1] if decay == 0.8 and backend in ("reference", "native") else [3]
    if len(steps) == 1:  # as if that many batches had gone by
        book.embed_avg[0, 1] *= 1e-34
        book.cluster_size[0, 1] *= 1e-34
    for _ in range(steps[0]):
        layer(x)
    torch.testing.assert_close(layer.codebook[1].cpu(), torch.tensor([-0.6, 0.8, 0.0, 0.0]))
    # Products with the live code are negative: a code of length 0 would win.
    out = layer.eval()(torch.tensor([[-1.0, 1.0, 0.0, 0.0]], device=device))
    assert out.indices.item() == 1
    assert out.quantized.norm() > 0.99


@pytest.mark.parametrize("learnable", [False, True], ids=["ema", "learnable"])
def test_codes_of_length_zero_in_a_state_are_left_out_until_revived(learnable: bool) -> None:
    options = {"use_cosine_sim": True, "learnable_codebook": learnable, "threshold_ema_dead_code": 1.0}
    state = FusedVectorQuantizer(4, 8, **options).state_dict()
    state["_codebook.embed"][0, 2:] = 0.0
    state["_codebook.embed_avg"][0, 2:] = 0.0
    state["_codebook.cluster_size"][0, 2:] = 0.0
    layer = FusedVectorQuantizer(4, 8, **options)
    with pytest.warns(UserWarning, match="6 codes of length 0 were loaded .* left out of the search"):
        layer.load_state_dict(state)
    assert torch.equal(layer.codebook[2:], torch.zeros(6, 4)), "left out of the search alone"
    assert torch.equal(layer.get_codes_from_indices(torch.tensor([[3]])), torch.zeros(1, 1, 4))
    x = -layer.codebook[:2].detach().sum(0) + 0.01 * torch.randn(50, 4)  # nearer to 0 than to both live codes
    assert layer.eval()(x).indices.max() <= 1
    out = layer.train()(x.requires_grad_())
    (out.loss + out.quantized.sum()).backward()
    assert out.indices.max() <= 1
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert all(v.isfinite().all() for v in layer.state_dict().values())
    assert layer(x).indices.max() > 1  # revived as rows of the batch
    other = FusedVectorQuantizer(4, 8, **options)
    other.load_state_dict(layer.state_dict())


def test_codes_stored_at_another_length_are_loaded_at_unit_length() -> None:
    layer = FusedVectorQuantizer(4, 8, use_cosine_sim=True)
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    want = state["_codebook.embed"].clone()
    state["_codebook.embed"] *= torch.rand(1, 8, 1) + 0.5
    layer.load_state_dict(state)
    torch.testing.assert_close(layer.codebook, want[0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kmeans_init": True},
        {"threshold_ema_dead_code": 20},
        {"manual_ema_update": True},
        {"learnable_codebook": True, "ema_update": False, "threshold_ema_dead_code": 20},
        {"heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True, "kmeans_init": True},
    ],
    ids=["plain", "kmeans", "revival", "manual", "gradient", "separate_heads"],
)
def test_a_batch_whose_sums_overflow_spoils_no_code(options: dict[str, Any]) -> None:
    layer = seeded(decay=0.5, **options)
    huge = torch.randn(400, 6).sign() * torch.empty(400, 6).uniform_(1e37, 3e38)
    for _ in range(3):
        layer(huge)
        layer.update_codebooks()
        assert all(t.isfinite().all() for t in layer.state_dict().values())
    if "kmeans_init" not in options:
        before = layer.codebook.clone()
        layer(torch.randn(400, 6))
        layer.update_codebooks()
        assert layer.codebook.isfinite().all()
        assert "learnable_codebook" in options or not torch.equal(layer.codebook, before)


def test_kmeans_of_huge_rows_finds_codes_that_are_rows_or_means() -> None:
    layer = FusedVectorQuantizer(2, 4, kmeans_init=True, kmeans_iters=3)
    centres = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    out = layer(2e38 * centres.repeat(50, 1))
    assert out.indices.unique().numel() >= 2
    torch.testing.assert_close(layer.codebook.abs(), torch.full((4, 2), 2e38), rtol=1e-4, atol=0)
