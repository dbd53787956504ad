"""The operators under PyTorch's own machinery: opcheck, compile, export, functorch, modes, subclasses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import vq_kernels as vq
from vq_kernels.backends import Operation

OPS = torch.ops.vq_kernels
OPERATORS = get_args(Operation)


def cases(backend: str, device: torch.device) -> dict[str, list[tuple[object, ...]]]:
    x, codebook = torch.randn(4, 6, 8, device=device), torch.randn(11, 8, device=device)
    first = torch.randn(2, 8, 5, device=device)
    mask = torch.rand(4, 6, device=device) > 0.3
    indices = torch.randint(0, 11, (4, 6), device=device)
    some = indices.clone()
    some[0] = -1
    counts = torch.randint(1, 5, (11,), device=device)
    valid = torch.tensor(18, device=device)
    one = torch.tensor(1.0, device=device)
    step = (0.1, "straight_through", -1, backend)
    return {
        "nearest_code": [
            (x, codebook, "l2", "exact", -1, backend),
            (first, codebook, "cosine", "fast", 1, backend),
            (x.bfloat16(), codebook, "l2", "high", -1, backend),
        ],
        "gather_codes": [(codebook, indices, -1, backend), (codebook, indices, 1, backend)],
        "code_statistics": [
            (x, some, 11, -1, True, backend),
            (x[:, ::2], indices[:, ::2], 11, -1, False, backend),
        ],
        "ema_update_": [
            (codebook.clone(), torch.rand(11, device=device), codebook.clone(), counts, codebook.clone(),
             0.9, 1e-5, normalize, backend)
            for normalize in (False, True)
        ],
        "vector_quantize": [
            (x, codebook, None, "l2", "exact", -1, True, False, backend),
            (x, codebook, mask, "l2", "exact", -1, False, True, backend),
            (first, codebook, None, "cosine", "exact", 1, True, True, backend),
            (x, codebook, mask, "l2", "exact", -1, True, False, backend, "rotation_trick", 0.25, 0.5),
            (x, codebook, mask, "l2", "exact", -1, True, False, backend, "rotation_trick", 0.25, 0.5, True),
            (x.transpose(0, 1), codebook, None, "l2", "exact", -1, True, False, backend),
        ],
        "vector_quantize_backward": [
            (x, one, x, codebook, some, valid, *step),
            (None, one, x, codebook, some, valid, *step),
            (x, None, x, codebook, some, valid, 0.1, "rotation_trick", -1, backend),
            (first, one, first, codebook, some[1:3, :5].clone(), valid, 0.1, "rotation_trick", 1, backend),
        ],
    }  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str, backend: str, device: torch.device) -> None:
    for args in cases(backend, device)[name]:
        opcheck(getattr(OPS, name).default, args)


def step(x: Tensor, codebook: Tensor, gradient: str = "rotation_trick") -> Tensor:
    out = vq.vector_quantize(x, codebook, codebook_weight=0.5, gradient=gradient)
    return out.loss + (out.quantized * torch.arange(8.0, device=x.device)).sum()


@pytest.mark.parametrize("gradient", ["straight_through", "rotation_trick"])
def test_compiled_step_equals_eager(gradient: str, device: torch.device) -> None:
    x = torch.randn(5, 8, device=device, requires_grad=True)
    codebook = torch.randn(11, 8, device=device, requires_grad=True)
    compiled = torch.compile(step, fullgraph=True)
    for rows in (5, 7):
        x = torch.randn(rows, 8, device=device, requires_grad=True)
        want, got = step(x, codebook, gradient), compiled(x, codebook, gradient)
        torch.testing.assert_close(got, want)
        want_grads = torch.autograd.grad(want, [x, codebook])
        got_grads = torch.autograd.grad(got, [x, codebook])
        for a, b in zip(got_grads, want_grads, strict=True):
            torch.testing.assert_close(a, b)


def test_compiled_ema_update_equals_eager(device: torch.device) -> None:
    def update(codebook: Tensor, size: Tensor, average: Tensor, x: Tensor) -> Tensor:
        indices = vq.nearest_code(x, codebook)
        counts, sums = vq.code_statistics(x, indices, codebook.shape[0])
        vq.ema_update_(codebook, size, average, counts, sums, decay=0.9, eps=1e-5)
        return vq.gather_codes(codebook, indices)

    x = torch.randn(20, 4, device=device)
    codebook = torch.randn(6, 4, device=device)
    states = [[codebook.clone(), torch.ones(6, device=device), codebook.clone()] for _ in range(2)]
    want = update(*states[0], x)
    got = torch.compile(update, fullgraph=True)(*states[1], x)
    assert torch.equal(got, want)
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, codebook)


def test_export_of_the_eval_path(device: torch.device) -> None:
    class Encode(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codebook = torch.nn.Parameter(torch.randn(11, 8, device=device))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            indices = vq.nearest_code(x, self.codebook, channel_dim=1)
            return indices, vq.gather_codes(self.codebook, indices, channel_dim=1)

    module, x = Encode().eval(), torch.randn(2, 8, 5, 3, device=device)
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},)).module()
        for n in (2, 7):
            x = torch.randn(n, 8, 5, 3, device=device)
            for a, b in zip(program(x), module(x), strict=True):
                assert torch.equal(a, b)


def test_functorch_transforms_see_the_operators(device: torch.device) -> None:
    """A fast path without a functorch check would run on wrapped tensors and break here."""
    x, codebook = torch.randn(3, 6, 8, device=device), torch.randn(11, 8, device=device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        indices = torch.func.vmap(lambda x: vq.nearest_code(x, codebook))(x)
        assert torch.equal(indices, vq.nearest_code(x, codebook))

        want_x = x.clone().requires_grad_()
        want_codebook = codebook.clone().requires_grad_()
        want = torch.autograd.grad(step(want_x, want_codebook), [want_x, want_codebook])
        got = torch.func.grad(step, argnums=(0, 1))(x, codebook)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)

        per_sample = torch.func.vmap(torch.func.grad(step), in_dims=(0, None))(x, codebook)
        for got_row, x_row in zip(per_sample, x, strict=True):
            x_row = x_row.clone().requires_grad_()
            (want_row,) = torch.autograd.grad(step(x_row, codebook), x_row)
            torch.testing.assert_close(got_row, want_row)


def test_dispatch_modes_see_the_operators(device: torch.device) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Record():
        vq.nearest_code(torch.randn(2, 3, device=device), torch.randn(4, 3, device=device))
    assert "vq_kernels.nearest_code.default" in seen


def test_fake_tensors_carry_shapes(device: torch.device) -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(2, 8, 5, 3, device=device, dtype=torch.bfloat16)
        out = vq.vector_quantize(x, torch.empty(11, 8, device=device), channel_dim=1)
    assert out.quantized.shape == x.shape
    assert out.quantized.dtype == torch.bfloat16
    assert out.indices.shape == (2, 5, 3)
    assert out.counts.shape == (11,)
    assert out.loss.dtype == torch.float32


def test_saved_tensors_notice_an_ema_update(device: torch.device) -> None:
    """A Library operator that mutates does not bump the version by itself."""
    x, codebook = torch.randn(9, 4, device=device, requires_grad=True), torch.randn(5, 4, device=device)
    out = vq.vector_quantize(x, codebook)
    size, average = torch.ones(5, device=device), codebook.clone()
    vq.ema_update_(codebook, size, average, out.counts, out.sums, decay=0.9, eps=1e-5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.loss.backward()


def test_inference_mode_and_no_grad(device: torch.device) -> None:
    x = torch.randn(9, 4, device=device, requires_grad=True)
    codebook = torch.randn(5, 4, device=device, requires_grad=True)
    want = vq.vector_quantize(x, codebook)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            got = vq.vector_quantize(x, codebook)
        assert torch.equal(got.quantized, want.quantized)
        assert not got.quantized.requires_grad


def test_operators_run_from_other_threads(device: torch.device) -> None:
    from concurrent.futures import ThreadPoolExecutor

    codebook = torch.randn(31, 8, device=device)
    batches = [torch.randn(200, 8, device=device) for _ in range(8)]
    want = [vq.nearest_code(x, codebook) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: vq.nearest_code(x, codebook), batches))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", ["layer", "function"])
def test_exported_programs_are_saved_and_read(name: str, tmp_path: Path) -> None:
    """Their results are named tuples, which torch.export.save refuses unless they are registered."""

    class Function(torch.nn.Module):
        def forward(self, x: torch.Tensor, codebook: torch.Tensor) -> vq.VectorQuantized:
            return vq.vector_quantize(x, codebook)

    torch.manual_seed(0)
    x = torch.randn(4, 10, 8)
    module, inputs = (vq.FusedVectorQuantizer(8, 16).eval(), (x,))
    if name == "function":
        module, inputs = Function(), (x, torch.randn(16, 8))
    torch.export.save(torch.export.export(module, inputs), tmp_path / "program.pt2")
    result = torch.export.load(tmp_path / "program.pt2").module()(*inputs)
    expected = module(*inputs)
    assert type(result) is type(expected)
    for actual, wanted in zip(result, expected, strict=True):
        assert torch.equal(actual, wanted)
