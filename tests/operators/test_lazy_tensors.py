"""Tensors that are not what their memory says, and what watches operators: the right values all the same."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import vq_kernels as vq
from vq_kernels import FusedVectorQuantizer

GRADIENTS = pytest.mark.parametrize("gradient", ["straight_through", "rotation_trick"])


def negated(*shape: int, device: torch.device | None = None) -> Tensor:
    x = torch.complex(torch.randn(shape, device=device), torch.randn(shape, device=device)).conj().imag
    assert x.is_neg()
    return x


def test_lazily_negated_rows(backend: str, device: torch.device) -> None:
    x, codebook = negated(200, 8, device=device), torch.randn(16, 8, device=device)
    assert torch.equal(
        vq.nearest_code(x, codebook, backend=backend), vq.nearest_code(x.clone(), codebook, backend=backend)
    )
    for got, want in zip(
        vq.vector_quantize(x, codebook, backend=backend),
        vq.vector_quantize(x.clone(), codebook, backend=backend),
        strict=True,
    ):
        assert torch.equal(got, want)
    indices = vq.nearest_code(x, codebook)
    for got, want in zip(
        vq.code_statistics(x, indices, 16, backend=backend),
        vq.code_statistics(x.clone(), indices, 16, backend=backend),
        strict=True,
    ):
        assert torch.equal(got, want)


def test_a_lazily_negated_codebook(backend: str, device: torch.device) -> None:
    x, codebook = torch.randn(200, 8, device=device), negated(16, 8, device=device)
    indices = torch.randint(0, 16, (50,), device=device)
    for function in (
        lambda codes: vq.nearest_code(x, codes, backend=backend),
        lambda codes: vq.gather_codes(codes, indices, backend=backend),
        lambda codes: vq.vector_quantize(x, codes, backend=backend).quantized,
    ):
        assert torch.equal(function(codebook), function(codebook.clone()))


def test_the_layer_on_lazily_negated_rows() -> None:
    x, layer = negated(200, 8), FusedVectorQuantizer(8, 16).eval()
    for got, want in zip(layer(x), layer(x.clone()), strict=True):
        assert torch.equal(got, want)


@GRADIENTS
def test_lazily_negated_gradients(gradient: str) -> None:
    """The derivative of |1 - i q| is that of |1 + i q|, but arrives with its sign in a flag."""
    x, codebook, grads = torch.randn(200, 8), torch.randn(16, 8), []
    for conjugate in (False, True):
        leaf = x.clone().requires_grad_()
        q = vq.vector_quantize(leaf, codebook, gradient=gradient).quantized
        z = torch.complex(torch.ones_like(q), q)
        (z.conj() if conjugate else z).abs().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(grads[0], grads[1])


def test_zero_tensors_have_no_memory(backend: str, device: torch.device) -> None:
    codebook, zero = torch.randn(16, 8, device=device), torch._efficientzerotensor(5, 8, device=device)
    for got, want in zip(
        vq.vector_quantize(zero, codebook, backend=backend),
        vq.vector_quantize(torch.zeros(5, 8, device=device), codebook, backend=backend),
        strict=True,
    ):
        assert torch.equal(got, want)


@GRADIENTS
def test_batched_gradients(gradient: str) -> None:
    x, codebook = torch.randn(20, 8, requires_grad=True), torch.randn(16, 8)
    quantized = vq.vector_quantize(x, codebook, gradient=gradient).quantized
    batch = torch.randn(3, 20, 8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        (got,) = torch.autograd.grad(quantized, x, batch, is_grads_batched=True, retain_graph=True)
    for row, one in zip(got, batch, strict=True):
        assert torch.equal(row, torch.autograd.grad(quantized, x, one, retain_graph=True)[0])


def test_a_vectorized_jacobian() -> None:
    x, codebook = torch.randn(3, 8), torch.randn(16, 8)

    def quantize(t: Tensor) -> Tensor:
        return vq.vector_quantize(t, codebook, gradient="rotation_trick").quantized

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        got = torch.autograd.functional.jacobian(quantize, x, vectorize=True)
    torch.testing.assert_close(got, torch.autograd.functional.jacobian(quantize, x))


def test_meta_tensors_give_shapes() -> None:
    x, codebook = torch.empty(2, 8, 5, device="meta"), torch.empty(16, 8, device="meta")
    out = vq.vector_quantize(x, codebook, channel_dim=1)
    assert out.quantized.shape == (2, 8, 5)
    assert out.indices.shape == (2, 5)
    assert out.counts.device.type == "meta"


@pytest.mark.parametrize("options", [{}, {"kmeans_init": True}, {"threshold_ema_dead_code": 2}])
def test_a_training_step_without_data(options: dict[str, Any]) -> None:
    """On the meta device, where nothing can be asked: shapes alone."""
    layer = FusedVectorQuantizer(8, 16, **options).to("meta")
    out = layer(torch.empty(2, 20, 8, device="meta"))
    assert out.quantized.shape == (2, 20, 8)
    assert out.indices.shape == (2, 20)
    assert out.loss.is_meta


def eval_layer(**options: Any) -> FusedVectorQuantizer:
    return FusedVectorQuantizer(8, 16, **options).eval()


TRACED: dict[str, Callable[[], Callable[[Tensor], Any]]] = {
    "layer": eval_layer,
    "projection": lambda: eval_layer(codebook_dim=4),
    "cosine": lambda: eval_layer(use_cosine_sim=True),
    "learnable": lambda: eval_layer(learnable_codebook=True),
    "functions": lambda: _SearchAndGather(),
}


class _SearchAndGather(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.codebook = torch.nn.Parameter(torch.randn(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return vq.gather_codes(self.codebook, vq.nearest_code(x, self.codebook))


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traced_programs_compute_and_can_be_saved(name: str) -> None:
    module = TRACED[name]()
    program = torch.jit.trace(module, torch.randn(4, 10, 8))
    file = io.BytesIO()
    torch.jit.save(program, file)
    file.seek(0)
    x = torch.randn(4, 10, 8)
    want = module(x)
    want = (want,) if isinstance(want, Tensor) else tuple(want)
    for run in (program, torch.jit.load(file)):
        got = run(x)
        for a, b in zip((got,) if isinstance(got, Tensor) else got, want, strict=True):
            assert torch.equal(a, b)


def test_profilers_and_function_modes_see_the_operators() -> None:
    x, codebook = torch.randn(5, 8), torch.randn(16, 8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        vq.nearest_code(x, codebook)
    assert any(event.key == "vq_kernels::nearest_code" for event in profile.key_averages())

    seen: list[str] = []

    class Record(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Record():
        vq.nearest_code(x, codebook)
    assert "vq_kernels.nearest_code.default" in seen


def test_flops_are_those_of_the_products() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x, codebook = torch.randn(2, 8, 5), torch.randn(16, 8)
    for function in (vq.nearest_code, vq.vector_quantize):
        with FlopCounterMode(display=False) as counter:
            function(x, codebook, channel_dim=1)
        assert counter.get_total_flops() == 2 * 10 * 16 * 8
    layer = FusedVectorQuantizer(8, 16)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(10, 8, requires_grad=True)).loss.backward()
    assert counter.get_total_flops() == 2 * 10 * 16 * 8
