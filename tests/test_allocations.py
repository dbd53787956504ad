"""Default device and default dtype are the user's: the library names both wherever it allocates."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vq_kernels as vq

PACKAGE = Path(vq.__file__).parent
FACTORIES = {
    "arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal",
    "ones", "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices",
    "triu_indices", "zeros",
}  # fmt: skip


def nameless_allocations(source: str) -> list[str]:
    """Calls of torch's factories that leave device or dtype to the defaults."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        f"line {call.lineno}: torch.{call.func.attr}"
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "torch"
        and call.func.attr in FACTORIES
        and not {"device", "dtype"} <= {keyword.arg for keyword in call.keywords}
    ]


def test_a_nameless_allocation_is_found() -> None:
    assert nameless_allocations("x = torch.zeros(3, dtype=torch.float32)") == ["line 1: torch.zeros"]
    assert nameless_allocations("x = torch.zeros(3, dtype=torch.float32, device=y.device)") == []


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_every_allocation_names_device_and_dtype(file: Path) -> None:
    assert nameless_allocations(file.read_text()) == []


@contextmanager
def other_default(kind: str) -> Iterator[None]:
    if kind == "device":
        with torch.device("meta"):
            yield
        return
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture
def made(device: torch.device) -> dict[str, Any]:
    here = {"device": device, "dtype": torch.float32}
    return {
        "x": torch.randn(4, 6, 8, **here),
        "first": torch.randn(2, 8, 5, **here),
        "codebook": torch.randn(11, 8, **here),
        "indices": torch.randint(0, 11, (4, 6), device=device),
        "mask": torch.rand(4, 6, device=device) > 0.3,
        "size": torch.ones(11, **here),
    }


@pytest.fixture
def layers(device: torch.device) -> list[vq.FusedVectorQuantizer]:
    settings: list[dict[str, Any]] = [
        {},
        {"kmeans_init": True, "threshold_ema_dead_code": 1.5},
        {"manual_ema_update": True, "threshold_ema_dead_code": 1.5},
        {"learnable_codebook": True, "use_cosine_sim": True},
        {"heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True},
    ]
    return [vq.FusedVectorQuantizer(8, 11, **s).to(device) for s in settings]


defaults = pytest.mark.parametrize("default", ["device", "dtype"])


@defaults
def test_operations_under_other_defaults(
    default: str, made: dict[str, Any], backend: str, device: torch.device
) -> None:
    x, codebook, indices = made["x"].requires_grad_(), made["codebook"], made["indices"]
    with other_default(default):
        found = vq.nearest_code(x, codebook, backend=backend)
        out = vq.vector_quantize(x, codebook, mask=made["mask"], commitment_weight=0.25, backend=backend)
        first = vq.vector_quantize(made["first"], codebook, channel_dim=1, backend=backend)
        (out.loss + out.quantized.sum()).backward()
        codes = vq.gather_codes(codebook.clone().requires_grad_(), indices, backend=backend)
        codes.sum().backward()
        counts, sums = vq.code_statistics(x, indices, 11, backend=backend)
        average = codebook.clone()
        vq.ema_update_(codebook, made["size"], average, counts, sums, decay=0.9, eps=1e-5, backend=backend)
    results: list[Tensor] = [found, *out, *first, x.grad, codes, counts, sums, codebook, average]
    assert all(t.device.type == device.type for t in results)
    assert {t.dtype for t in results} == {torch.float32, torch.int64}


@defaults
def test_layers_under_other_defaults(
    default: str, made: dict[str, Any], layers: list[vq.FusedVectorQuantizer], device: torch.device
) -> None:
    for layer in layers:
        x = made["x"].detach().clone().requires_grad_()
        with other_default(default):
            for _ in range(2):
                out = layer(x, mask=made["mask"])
                (out.loss + out.quantized.sum()).backward()
                layer.update_codebooks()
            results = [*out, x.grad, layer.perplexity, layer.usage, *layer.state_dict().values()]
            results += [layer.get_output_from_indices(out.indices), layer.get_codes_from_indices(out.indices)]
        assert all(t.device.type == device.type for t in results)
        assert {t.dtype for t in results} == {torch.float32, torch.int64}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("how", ["default", "cast"])
def test_a_layer_of_another_dtype_takes_and_gives_that_dtype(dtype: torch.dtype, how: str) -> None:
    for options in ({}, {"codebook_dim": 3}, {"use_cosine_sim": True}, {"kmeans_init": True}):
        torch.set_default_dtype(dtype if how == "default" else torch.float32)
        try:
            layer = vq.FusedVectorQuantizer(8, 11, **options)
            layer = layer if how == "default" else layer.to(dtype)
            out = layer(torch.randn(20, 8, dtype=torch.float32).to(dtype))
            decoded = layer.eval().get_output_from_indices(out.indices)
        finally:
            torch.set_default_dtype(torch.float32)
        assert out.quantized.dtype == dtype, options
        assert decoded.dtype == dtype, options
        assert layer.codebook.dtype == torch.float32
