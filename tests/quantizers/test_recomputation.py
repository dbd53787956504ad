"""Activation checkpointing: what is run again gives the codes of the first run, and nothing counts twice."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._functorch.config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import vq_kernels
from vq_kernels.quantizers import FusedVectorQuantizer

OPTIONS: dict[str, dict[str, Any]] = {
    "rotation_trick": {},
    "straight_through": {"rotation_trick": False},
    "cosine": {"use_cosine_sim": True},
    "revival": {"threshold_ema_dead_code": 2.0},
    "kmeans": {"kmeans_init": True, "threshold_ema_dead_code": 1.0},
    "manual": {"manual_ema_update": True, "threshold_ema_dead_code": 1.0},
    "learnable": {"learnable_codebook": True, "threshold_ema_dead_code": 2.0},
    "learnable_cosine": {
        "learnable_codebook": True,
        "use_cosine_sim": True,
        "threshold_ema_dead_code": 2.0,
        "kmeans_init": True,
    },
    "separate_heads": {
        "heads": 2,
        "codebook_dim": 3,
        "separate_codebook_per_head": True,
        "threshold_ema_dead_code": 2.0,
    },
    "static_kmeans": {"ema_update": False, "kmeans_init": True},
}
HOW: dict[str, dict[str, Any]] = {
    "non_reentrant": {"use_reentrant": False},
    "reentrant": {"use_reentrant": True},
    "non_reentrant_to_the_end": {"use_reentrant": False, "stop_early": False},
}


class Model(nn.Module):
    """Two quantizers, one of them called twice, dropout after each: random numbers must not move."""

    def __init__(self, how: dict[str, Any] | None, dropout: float = 0.3, **options: Any) -> None:
        super().__init__()
        self.how = how
        self.encoder, self.middle, self.decoder = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.first, self.second = (
            FusedVectorQuantizer(8, 16, **options),
            FusedVectorQuantizer(8, 16, **options),
        )
        self.dropout = nn.Dropout(dropout)

    def body(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.encoder(x)
        a = self.first(x)
        y = self.middle(self.dropout(a.quantized))
        b, c = self.second(y.tanh()), self.first(y)
        z = self.decoder(self.dropout(b.quantized * c.quantized))
        return z, a.loss + b.loss + c.loss, torch.stack((a.indices, b.indices, c.indices))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.how is None:
            return self.body(x)
        how = {name: value for name, value in self.how.items() if name != "stop_early"}
        with set_checkpoint_early_stop(self.how.get("stop_early", True)):
            return checkpoint(self.body, x, **how)

    def quantizers(self) -> Iterator[FusedVectorQuantizer]:
        yield from (self.first, self.second)


def backward(result: tuple[Tensor, ...], **options: Any) -> None:
    ((result[0] ** 2).sum() + result[1]).backward(**options)


def one_by_one(results: list[tuple[Tensor, ...]]) -> None:
    for result in results:
        backward(result)


def last_first(results: list[tuple[Tensor, ...]]) -> None:
    one_by_one(results[::-1])


def together(results: list[tuple[Tensor, ...]]) -> None:
    torch.stack([(r[0] ** 2).sum() + r[1] for r in results]).sum().backward()


def twice(results: list[tuple[Tensor, ...]]) -> None:
    backward(results[1], retain_graph=True)
    backward(results[0])
    backward(results[1])


def train(how: dict[str, Any] | None, options: dict[str, Any], **model: Any) -> dict[str, Tensor]:
    """Everything that four steps of two batches each leave behind, by name."""
    torch.manual_seed(5)
    net, seen = Model(how, **model, **options), {}
    for step, run in enumerate((one_by_one, last_first, together, twice)):
        inputs = [torch.randn(40, 8, requires_grad=True) for _ in range(2)]
        results = [net(x) for x in inputs]
        run(results)
        for name, tensors in {
            "x.grad": [x.grad for x in inputs],
            "out": [t for r in results for t in r],
        }.items():
            seen |= {f"{step} {name} {number}": t.detach().clone() for number, t in enumerate(tensors)}
        seen |= {f"{step} {name}": b.clone() for name, b in net.named_buffers()}
        for number, layer in enumerate(net.quantizers()):
            seen[f"{step} counts {number}"] = layer.last_counts.clone()
            if options.get("manual_ema_update"):
                for name in ("counts", "sums", "rows", "usable", "total"):
                    seen[f"{step} {name} {number}"] = getattr(layer._codebook, f"pending_{name}").clone()
            layer.update_codebooks()
        seen |= {f"{step} {name} after": b.clone() for name, b in net.named_buffers()}
    seen |= {f"{name}.grad": p.grad for name, p in net.named_parameters() if p.grad is not None}
    return seen


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if "codebook.embed.grad" in name or "weight.grad" in name or "bias.grad" in name:
            # Gradients of several calls are added up in another order.
            torch.testing.assert_close(actual[name], value, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_training_is_that_without_checkpointing(options: dict[str, Any], how: dict[str, Any]) -> None:
    assert_same(train(how, options), train(None, options))


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_random_numbers_need_not_be_preserved(how: dict[str, Any]) -> None:
    options = OPTIONS["rotation_trick"]
    expected = train(None, options, dropout=0.0)
    assert_same(train(how | {"preserve_rng_state": False}, options, dropout=0.0), expected)


NESTED = [(outer, inner) for outer in (False, True) for inner in (False, True)]


@pytest.mark.parametrize(("outer", "inner"), NESTED, ids=[f"reentrant_{o}_{i}" for o, i in NESTED])
def test_a_checkpoint_within_a_checkpoint(outer: bool, inner: bool) -> None:
    outcomes = []
    for nested in (False, True):
        torch.manual_seed(5)
        layer, linear = FusedVectorQuantizer(8, 16, threshold_ema_dead_code=2.0), nn.Linear(8, 8)

        def body(x: Tensor, layer: FusedVectorQuantizer = layer, linear: nn.Linear = linear) -> Tensor:
            out = layer(linear(x))
            return linear(out.quantized) + out.loss

        def within(x: Tensor, body: Callable[[Tensor], Tensor] = body) -> Tensor:
            return checkpoint(body, x.tanh(), use_reentrant=inner).tanh()

        grads = []
        for _ in range(3):
            x = torch.randn(40, 8, requires_grad=True)
            y = checkpoint(within, x, use_reentrant=outer) if nested else body(x.tanh()).tanh()
            y.square().sum().backward()
            grads.append(x.grad)
        outcomes.append([*grads, *layer.state_dict().values()])
    for expected, actual in zip(*outcomes, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_nothing_is_kept_beyond_the_graph_or_in_copies(reentrant: bool) -> None:
    layer = FusedVectorQuantizer(8, 16)
    runs = layer._codebook.first_runs._runs
    x = torch.randn(40, 8, requires_grad=True)
    out = checkpoint(layer, x * 1, use_reentrant=reentrant)
    assert len(runs) == 1
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert len(other._codebook.first_runs._runs) == 0
    out[2].backward()
    del out
    gc.collect()
    assert len(runs) == 0
    checkpoint(layer, x * 1, use_reentrant=reentrant)  # never gone back through
    with torch.no_grad():
        layer(x)
    layer(x).loss.backward()
    gc.collect()
    assert len(runs) == 0


def test_eval_and_frozen_calls_are_run_again_with_the_codes_that_they_saw() -> None:
    for change in (lambda layer: layer.eval(), lambda layer: setattr(layer, "freeze_codebook", True)):
        layer = FusedVectorQuantizer(8, 16)
        x, decoder = torch.randn(40, 8, requires_grad=True), nn.Linear(8, 8)
        change(layer)
        y = checkpoint(lambda t, layer=layer, d=decoder: d(layer(t).quantized ** 2), x, use_reentrant=False)
        (expected,) = torch.autograd.grad(decoder(layer(x).quantized ** 2).sum(), x)
        layer.train()
        layer.freeze_codebook = False
        layer(torch.randn(40, 8))
        before = layer.codebook.clone()
        change(layer)
        y.sum().backward()
        assert torch.equal(x.grad, expected)
        assert torch.equal(layer.codebook, before)


@pytest.mark.parametrize("options", [{}, {"manual_ema_update": True}, {"kmeans_init": True}], ids=str)
def test_a_batch_that_first_comes_in_a_backward_pass_is_refused(options: dict[str, Any]) -> None:
    layer = FusedVectorQuantizer(8, 16, **options)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    x = torch.randn(40, 8, requires_grad=True) * 1
    x.register_hook(lambda grad: layer(grad).quantized)
    with pytest.raises(RuntimeError, match=r"called by a backward pass.*not known; accepted: .*checkpoint"):
        x.sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())
    layer.freeze_codebook = True
    x = torch.randn(40, 8, requires_grad=True) * 1
    x.register_hook(lambda grad: layer(grad).quantized)
    x.sum().backward()


def test_the_function_whose_codes_are_kept_is_not_run_again() -> None:
    """Its codebook changes in place (``keep_codes=True``), and nobody can say what it held."""
    codebook, x = torch.randn(16, 8), torch.randn(40, 8, requires_grad=True)

    def quantize(t: Tensor, keep_codes: bool) -> Tensor:
        return vq_kernels.vector_quantize(t, codebook, keep_codes=keep_codes).quantized.tanh()

    checkpoint(quantize, x, False, use_reentrant=False).sum().backward()
    y = checkpoint(quantize, x, True, use_reentrant=False)
    with pytest.raises(RuntimeError, match=r"read again in a backward pass.*accepted"):
        y.sum().backward()
