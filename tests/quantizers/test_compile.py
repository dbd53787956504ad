"""torch.compile in one graph, torch.export, and nothing that would make the host wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import vq_kernels as vq
from vq_kernels.quantizers import FusedVectorQuantizer

OPTIONS: dict[str, dict[str, Any]] = {
    "ema": {},
    "cosine_straight_through": {"use_cosine_sim": True, "rotation_trick": False},
    "revival": {"threshold_ema_dead_code": 1.5},
    "manual": {"manual_ema_update": True, "threshold_ema_dead_code": 1.5},
    "learnable": {"learnable_codebook": True, "threshold_ema_dead_code": 1.5},
    "separate_heads_projection": {"heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True},
    "image_shared_heads": {"accept_image_fmap": True, "heads": 2, "codebook_dim": 4},
    "kmeans": {"kmeans_init": True, "kmeans_iters": 2},  # each round is fifty nodes
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def input_for(options: dict[str, Any]) -> Tensor:
    return torch.randn(2, 8, 5, 3) if options.get("accept_image_fmap") else torch.randn(2, 15, 8)


def two_steps(
    layer: FusedVectorQuantizer, call: Any, inputs: list[Tensor], masks: list[Tensor | None]
) -> list[Tensor]:
    results: list[Tensor] = []
    torch.manual_seed(11)
    for x, mask in zip(inputs, masks, strict=True):
        x = x.clone().requires_grad_()
        out = call(x) if mask is None else call(x, mask=mask)
        layer.zero_grad()
        ((out.quantized**2).sum() + out.loss).backward()
        if layer._codebook.manual_ema_update:
            layer.update_ema()
        results += [*(t.detach().clone() for t in out), x.grad, layer.perplexity]
        results += [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    return results + [v.clone() for v in layer.state_dict().values()]


def compare(options: dict[str, Any], backend: str, masked: bool = False) -> None:
    inputs = [input_for(options) for _ in range(3)]
    masks = [torch.rand(2, 15) < 0.7 if masked else None for _ in inputs]
    outcomes = []
    for compiled in (False, True):
        torch.manual_seed(2)
        layer = FusedVectorQuantizer(8, 19, **options)
        call = torch.compile(layer, fullgraph=True, backend=backend) if compiled else layer
        outcomes.append(two_steps(layer, call, inputs, masks))
    assert len(outcomes[0]) == len(outcomes[1])
    for number, (expected, actual) in enumerate(zip(*outcomes, strict=True)):
        torch.testing.assert_close(actual, expected, msg=lambda m, n=number: f"result {n}: {m}")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_training_steps_in_one_graph_equal_eager(options: dict[str, Any]) -> None:
    compare(options, "aot_eager")


def test_masked_training_steps_in_one_graph_equal_eager() -> None:
    compare({"threshold_ema_dead_code": 1.5, "codebook_dim": 3}, "aot_eager", masked=True)


@pytest.mark.parametrize("name", ["revival", "separate_heads_projection"])
def test_training_steps_compiled_by_inductor_equal_eager(name: str) -> None:
    # Inductor has random numbers of its own unless told otherwise.
    with torch._inductor.config.patch(fallback_random=True):
        compare(OPTIONS[name], "inductor")


def test_a_step_is_one_graph_without_recompilation() -> None:
    graphs = 0

    def count(graph: Any, example: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph

    layer = FusedVectorQuantizer(8, 19, threshold_ema_dead_code=1.5)
    step = torch.compile(layer, backend=count)
    for _ in range(4):
        out = step(torch.randn(2, 15, 8, requires_grad=True))
        out.loss.backward()
    assert graphs == 1


@pytest.mark.parametrize(
    "options",
    [{}, {"codebook_dim": 3}, {"accept_image_fmap": True}, {"use_cosine_sim": True, "kmeans_init": True}],
    ids=["plain", "projection", "image", "cosine_kmeans"],
)
def test_eval_is_exported(options: dict[str, Any]) -> None:
    layer = FusedVectorQuantizer(8, 19, **options)
    layer(input_for(options))
    layer.eval()
    program = torch.export.export(layer, (input_for(options),))
    x = input_for(options)
    for actual, expected in zip(program.module()(x), layer(x), strict=True):
        torch.testing.assert_close(actual, expected)


class _AsksTheDevice(TorchDispatchMode):
    """Notes operators whose result the host must wait for, or whose shape depends on data."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "is_nonzero", "item")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.calls += 1
        boolean_index = name == "aten.index.Tensor" and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if boolean_index or any(word in name for word in self.WAITING):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


SYNC_FREE = {k: v for k, v in OPTIONS.items() if k != "image_shared_heads"}


@pytest.mark.parametrize("options", SYNC_FREE.values(), ids=SYNC_FREE)
def test_a_training_step_asks_the_device_nothing(options: dict[str, Any]) -> None:
    layer = FusedVectorQuantizer(8, 19, **options)
    layer(input_for(options))  # k-means initialisation may ask once
    x, mask = input_for(options).requires_grad_(), torch.rand(2, 15) < 0.7
    with _AsksTheDevice() as seen:
        out = layer(x, mask=mask)
        (out.quantized.sum() + out.loss).backward()
        if layer._codebook.manual_ema_update:
            layer.update_ema()
        assert isinstance(layer.perplexity, Tensor)
        assert isinstance(layer.usage, Tensor)
    assert seen.calls > 10
    assert seen.found == []


def test_the_layer_trains_inside_a_compiled_model() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 8), FusedVectorQuantizer(8, 19))

    def loss_of(x: Tensor) -> Tensor:
        out = model(x)
        return out.quantized.square().mean() + out.loss

    x = torch.randn(40, 6)
    before = model[1].codebook.clone()
    torch.compile(loss_of, fullgraph=True, backend="aot_eager")(x).backward()
    assert model[0].weight.grad.abs().sum() > 0
    assert not torch.equal(model[1].codebook, before)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_dynamic_shapes_in_one_graph_equal_eager(options: dict[str, Any]) -> None:
    inputs = [torch.randn(n, *input_for(options).shape[1:]) for n in (2, 3, 5)]
    outcomes = []
    for compiled in (False, True):
        torch.manual_seed(2)
        layer = FusedVectorQuantizer(8, 19, **options)
        call = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager") if compiled else layer
        outcomes.append(two_steps(layer, call, inputs, [None] * len(inputs)))
    for number, (expected, actual) in enumerate(zip(*outcomes, strict=True)):
        torch.testing.assert_close(actual, expected, msg=lambda m, n=number: f"result {n}: {m}")


@pytest.mark.parametrize("name", ["commitment_weight", "decay"])
@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
def test_a_setting_can_be_annealed_in_a_compiled_layer(name: str, dynamic: bool | None) -> None:
    outcomes = []
    for compiled in (False, True):
        torch.manual_seed(2)
        layer = FusedVectorQuantizer(8, 19)
        call = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        results = []
        for value in (0.9, 0.5, 0.25):  # each is compiled anew
            setattr(layer if name == "commitment_weight" else layer._codebook, name, value)
            x = torch.randn(20, 8, generator=torch.Generator().manual_seed(5)).requires_grad_()
            out = (call if compiled else layer)(x)
            out.loss.backward()
            results += [out.loss.detach(), x.grad, layer.codebook.clone()]
        outcomes.append(results)
    for expected, actual in zip(*outcomes, strict=True):
        torch.testing.assert_close(actual, expected)


def step_by_functions(x: Tensor, codebook: Tensor, size: Tensor, average: Tensor) -> Tensor:
    out = vq.vector_quantize(x, codebook)
    vq.ema_update_(codebook, size, average, out.counts, out.sums, decay=0.5, eps=1e-5)
    return out.loss


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_graph_that_updates_its_codebook_has_the_gradient_of_before(backend: str) -> None:
    x, codebook = torch.randn(20, 8), torch.randn(16, 8)
    alone, leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    vq.vector_quantize(alone, codebook).loss.backward()
    step = torch.compile(step_by_functions, fullgraph=True, backend=backend)
    updated = codebook.clone()
    step(leaf, updated, torch.ones(16), codebook.clone()).backward()
    assert not torch.equal(updated, codebook)
    torch.testing.assert_close(leaf.grad, alone.grad)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": torch.func.grad,
    "vjp": lambda f: lambda x: torch.func.vjp(f, x)[1](torch.ones(()))[0],
    "jacrev": torch.func.jacrev,
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[1],
}


@pytest.mark.parametrize("what", ["operation", "gather", "layer"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_inside_a_graph_is_no_zero_gradient(transform: str, what: str) -> None:
    """Nothing tells the compiler that a gradient is wanted; what is compiled may be differentiated."""
    codebook, layer = torch.randn(16, 8), FusedVectorQuantizer(8, 16).eval()
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "operation": lambda x: vq.vector_quantize(x, codebook).loss,
        "gather": lambda x: vq.gather_codes(x, torch.tensor([0, 3])).square().sum(),
        "layer": lambda x: layer(x).loss,
    }
    x, function = torch.randn(5, 8), functions[what]
    with pytest.raises(Exception, match=r"torch\.func\.grad of what is compiled|jvp"):
        torch.compile(TRANSFORMS[transform](function), backend="eager")(x)
    if transform != "jvp":
        torch._dynamo.reset()
        want = TRANSFORMS[transform](function)(x)
        got = TRANSFORMS[transform](torch.compile(function, backend="eager"))(x)
        torch.testing.assert_close(got, want)
        apart = torch.compiler.disable(TRANSFORMS[transform](function))
        torch.testing.assert_close(torch.compile(lambda x: apart(x) * 1, backend="eager")(x), want)
        assert (want != 0).any()
