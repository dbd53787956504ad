"""Exported models in another runtime: the same indices, edge cases and losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vq_kernels
from vq_kernels import onnx as vq_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def run(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], folder: Path, **options: object) -> list:
    path = folder / "model.onnx"
    table = vq_onnx.translations()
    torch.onnx.export(module, inputs, path, custom_translation_table=table, verbose=False, **options)
    session = onnxruntime.InferenceSession(path)
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feed)]


SETTINGS = [
    {},
    {"use_cosine_sim": True},
    {"heads": 2},
    {"heads": 2, "separate_codebook_per_head": True},
    {"codebook_dim": 4},
    {"learnable_codebook": True, "codebook_weight": 0.5, "commitment_weight": 0.25},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "plain")
def test_layer(settings: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = vq_kernels.FusedVectorQuantizer(8, 16, **settings).eval()
    x = torch.randn(3, 10, 8)
    quantized, indices, loss = run(layer, (x,), tmp_path)
    expected = layer(x)
    assert torch.equal(indices, expected.indices)
    torch.testing.assert_close(quantized, expected.quantized)
    torch.testing.assert_close(loss, expected.loss)


def test_feature_maps_of_any_batch_and_size(tmp_path: Path) -> None:
    layer = vq_kernels.FusedVectorQuantizer(8, 16, accept_image_fmap=True).eval()
    path = tmp_path / "model.onnx"
    shapes = ({0: "batch", 2: "height", 3: "width"},)
    torch.onnx.export(
        layer, (torch.randn(2, 8, 5, 6),), path, custom_translation_table=vq_onnx.translations(),
        dynamic_shapes=shapes, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path)
    for shape in ((2, 8, 5, 6), (7, 8, 3, 9)):
        x = torch.randn(shape)
        values = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        expected = layer(x)
        assert torch.equal(torch.from_numpy(values[1]), expected.indices)
        torch.testing.assert_close(torch.from_numpy(values[0]), expected.quantized)


class Operations(torch.nn.Module):
    """Every operator, with a mask, ties, and rows and codes that are not finite."""

    def forward(
        self, x: torch.Tensor, codebook: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        nearest = vq_kernels.nearest_code(x, codebook)
        fast = vq_kernels.nearest_code(x, codebook, metric="cosine", precision="high")
        codes = vq_kernels.gather_codes(codebook, nearest)
        counts, sums = vq_kernels.code_statistics(x, nearest, codebook.shape[0])
        fused = vq_kernels.vector_quantize(x, codebook, mask=mask, commitment_weight=0.25)
        options = ("l2", "exact", -1, True, False, None, "straight_through", 0.25, 0.5, True)
        differences = torch.ops.vq_kernels.vector_quantize(x, codebook, mask, *options)[5]
        return nearest, fast, codes, counts, sums, differences, *fused


def test_operators_and_their_edge_cases(tmp_path: Path) -> None:
    torch.manual_seed(1)
    codebook = torch.randn(16, 8)
    codebook[7] = codebook[3]
    codebook[0, 2] = torch.inf
    x = codebook[torch.randint(1, 16, (4, 9))] + 0.1 * torch.randn(4, 9, 8)
    x[1, 2, 3], x[2, 0, 0] = torch.nan, -torch.inf
    x[0, 0] = codebook[3]
    mask = torch.rand(4, 9) < 0.7
    mask[1, 2] = False
    mask[2, 0] = False
    inputs = (x, codebook, mask)
    for actual, expected in zip(run(Operations(), inputs, tmp_path), Operations()(*inputs), strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match="pip install onnxscript"):
        vq_onnx.translations()
