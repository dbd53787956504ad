"""How schemas are made from the classes of options, and what old callers of an operator rely on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import preloaded
import pytest
import torch

import vq_kernels as vq
from vq_kernels.backends import QuantizeOptions
from vq_kernels.operators.quantize import vector_quantize
from vq_kernels.operators.registry import define, options_schema


def run_python(code: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=800)
    assert done.returncode == 0, done.stderr


class Options(NamedTuple):
    metric: str
    backend: str | None
    statistics: bool = True
    temperature: float = 0.5
    stages: int = 3
    gradient: str = "straight_through"


def test_options_become_the_arguments_of_a_schema() -> None:
    assert options_schema(Options) == (
        "str metric, str? backend, bool statistics=True, float temperature=0.5, int stages=3, "
        'str gradient="straight_through"'
    )


def test_programs_exported_by_release_0_1_0_find_every_argument_and_result() -> None:
    """They hold operators by name and arguments by position: these nine, and seven results."""
    x, codebook = torch.randn(9, 4), torch.randn(5, 4)
    old = (x, codebook, None, "l2", "exact", -1, True, True, "reference")
    for packet in (torch.ops.vq_kernels.vector_quantize, torch.ops.vq_kernels.vector_quantize.default):
        quantized, indices, mse, valid_rows, counts, sums, copy = packet(*old)
        want = vq.vector_quantize(x, codebook)
        assert torch.equal(quantized, want.quantized)
        assert torch.equal(indices, want.indices)
        torch.testing.assert_close(mse, want.loss)
        assert valid_rows == 9
        assert torch.equal(counts, want.counts)
        torch.testing.assert_close(sums, want.sums)
        assert torch.equal(copy, codebook)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.25, 0.0), (0.25, 0.5), (0.0, 0.0)])
def test_the_operator_gives_the_weighted_loss(
    weights: tuple[float, float], backend: str, device: torch.device
) -> None:
    x, codebook = torch.randn(9, 4, device=device), torch.randn(5, 4, device=device)
    plain = QuantizeOptions("l2", "exact", -1, False, False, backend)
    weighted = plain._replace(commitment_weight=weights[0], codebook_weight=weights[1])
    mse = vector_quantize(x, codebook, None, plain).loss
    torch.testing.assert_close(vector_quantize(x, codebook, None, weighted).loss, sum(weights) * mse)


RELOADS = {
    "reload": "import importlib; [importlib.reload(m) for n, m in list(sys.modules.items()) if mine(n)]",
    "fresh_import": "[sys.modules.pop(n) for n in list(sys.modules) if mine(n)]",
    "dropped_and_collected": (
        "del vq; [sys.modules.pop(n) for n in list(sys.modules) if mine(n)]; import gc; gc.collect()"
    ),
}


@pytest.mark.parametrize("how", RELOADS)
def test_the_package_can_be_imported_again(how: str) -> None:
    code = f"""
        import sys, torch
        import vq_kernels as vq
        def mine(name):
            return name.split(".")[0] == "vq_kernels" and not name.startswith("vq_kernels._C")
        x, codebook = torch.randn(5, 4), torch.randn(7, 4)
        want = vq.nearest_code(x, codebook)
        {RELOADS[how]}
        import vq_kernels as vq
        assert torch.equal(vq.nearest_code(x, codebook), want)
        assert torch.equal(torch.compile(vq.nearest_code, backend="aot_eager")(x, codebook), want)
        leaf = x.clone().requires_grad_()
        vq.FusedVectorQuantizer(4, 7)(leaf).loss.backward()
        assert leaf.grad is not None
    """
    if how == "dropped_and_collected":  # in a fork, what it has imported before holds on to the package
        run_python(code)
    else:
        done = preloaded.run(["-c", textwrap.dedent(code)])
        assert done.returncode == 0, done.stderr[-3000:]


def test_an_interned_package_shares_the_operators(tmp_path: Path) -> None:
    code = f"""
        import torch, vq_kernels
        from torch.package import PackageExporter, PackageImporter
        layer = vq_kernels.FusedVectorQuantizer(4, 7).eval()
        with PackageExporter({str(tmp_path / "layer.pt")!r}) as exporter:
            exporter.intern("vq_kernels.**", exclude="vq_kernels._C")
            exporter.extern("**")
            exporter.save_pickle("layer", "layer.pkl", layer)
        packed = PackageImporter({str(tmp_path / "layer.pt")!r}).load_pickle("layer", "layer.pkl")
        x = torch.randn(5, 4)
        assert type(packed) is not type(layer)
        assert torch.equal(packed(x).indices, layer(x).indices)
    """
    run_python(code)


def test_an_operator_of_another_version_is_named() -> None:
    with pytest.raises(RuntimeError, match="vq_kernels::nearest_code of another version is loaded"):
        define("nearest_code(Tensor x) -> Tensor", lambda x: x, lambda x: x)
