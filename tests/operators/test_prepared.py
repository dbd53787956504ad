"""A prepared codebook in place of its tensor: the same results, and an error where the tensor has changed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support import DTYPES, LAYOUTS, is_slow
from torch import Tensor, nn

import vq_kernels as vq

SHAPES = [(1, 1, 3), (5, 3, 2), (9, 128, 1024), (70, 64, 300), (300, 16, 700), (130, 8, 4096)]  # N, D, K


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_finds_the_same_codes(
    shape: tuple[int, int, int], metric: str, backend: str, device: torch.device
) -> None:
    if is_slow(backend) and shape != SHAPES[0]:
        pytest.skip("kernels are interpreted here: one shape")
    if device.type == "cpu" and backend.startswith("cuda") and shape not in SHAPES[:2]:
        pytest.skip("kernels run on the host here, which have no packed codes: small shapes")
    n, d, k = shape
    codebook = torch.randn(k, d, device=device)
    prepared = vq.prepare_codebook(codebook, metric=metric, backend=backend)
    for dtype in DTYPES:
        x = torch.randn(n, d, device=device).to(dtype)
        for _ in range(2):
            got = vq.nearest_code(x, prepared, metric=metric, backend=backend)
            assert torch.equal(got, vq.nearest_code(x, codebook, metric=metric, backend=backend))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_quantizes_the_same(layout: str, backend: str, device: torch.device) -> None:
    if is_slow(backend) and layout != "rows":
        pytest.skip("kernels are interpreted here: one layout")
    channel_dim, build = LAYOUTS[layout]
    x, codebook = build(2, 21, 16, torch.float32).to(device), torch.randn(70, 16, device=device)
    indices = vq.nearest_code(x, codebook, channel_dim=channel_dim)
    mask = torch.rand(indices.shape, device=device) < 0.8
    prepared = vq.prepare_codebook(codebook)
    for options in ({}, {"mask": mask}, {"statistics": False}):
        want = vq.vector_quantize(x, codebook, channel_dim=channel_dim, backend=backend, **options)
        got = vq.vector_quantize(x, prepared, channel_dim=channel_dim, backend=backend, **options)
        for one, other in zip(got, want, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])
def test_codes_of_any_dtype_that_cannot_be_chosen(dtype: torch.dtype) -> None:
    x, codebook = torch.randn(100, 20).to(dtype), torch.randn(600, 20).to(dtype)
    codebook[3], codebook[5, 1], codebook[7] = torch.inf, torch.nan, codebook[6]
    x[2], x[4] = codebook[7], torch.nan
    prepared = vq.prepare_codebook(codebook)
    got = vq.nearest_code(x, prepared)
    assert torch.equal(got, vq.nearest_code(x, codebook))
    assert got[2] == 6
    assert got[4] == 0


def test_a_backend_that_did_not_pack_it_searches_its_codes() -> None:
    x, codebook = torch.randn(9, 8), torch.randn(30, 8)
    prepared = vq.prepare_codebook(codebook, backend="reference")
    assert prepared.backend == "reference"
    assert torch.equal(vq.nearest_code(x, prepared), vq.nearest_code(x, codebook))
    assert torch.equal(vq.nearest_code(x.double(), prepared), vq.nearest_code(x.double(), codebook))


def test_it_is_a_snapshot_that_cannot_be_written_to() -> None:
    codebook = torch.randn(30, 8)
    prepared = vq.prepare_codebook(codebook)
    assert (prepared.shape, prepared.dtype, prepared.device) == ((30, 8), torch.float32, torch.device("cpu"))
    prepared.codes().zero_()
    assert torch.equal(prepared.codes(), codebook)
    with pytest.raises(AttributeError, match="immutable"):
        prepared.metric = "cosine"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del prepared.backend


def _assign_data(codebook: nn.Parameter) -> None:
    codebook.data = codebook.data.clone()


def _free(codebook: nn.Parameter) -> None:
    codebook.untyped_storage().resize_(0)


def _train(codebook: nn.Parameter) -> None:
    codebook.grad = torch.ones_like(codebook)
    torch.optim.SGD([codebook], lr=0.1).step()


def _train_fused(codebook: nn.Parameter) -> None:
    """Which torch writes without raising the version."""
    codebook.square().sum().backward()
    torch.optim.Adam([codebook], fused=True).step()


def _update(codebook: nn.Parameter) -> None:
    size, average = torch.ones(30), codebook.detach().clone()
    counts, sums = torch.ones(30), torch.ones(30, 8)
    vq.ema_update_(codebook, size, average, counts, sums, decay=0.5, eps=1e-5)


def _cast(codebook: nn.Parameter) -> None:
    module = nn.Module()
    module.codebook = codebook
    module.half()


CHANGES: list[tuple[Callable[[nn.Parameter], object], str]] = [
    (lambda codebook: codebook.detach().zero_(), "version 0 and now 1"),
    (lambda codebook: codebook.detach()[3].mul_(2), "version 0 and now 1"),
    (_assign_data, "address"),
    (_free, "address"),
    (_train, "version"),
    (_train_fused, "version"),
    (_update, "version"),
    (_cast, "dtype torch.float32 and now torch.float16"),
]


@pytest.mark.parametrize(
    ("change", "words"), CHANGES, ids=["zero", "row", "data", "free", "train", "train_fused", "ema", "cast"]
)
def test_a_tensor_that_changed_is_an_error(change: Callable[[nn.Parameter], object], words: str) -> None:
    codebook = nn.Parameter(torch.randn(30, 8))
    prepared = vq.prepare_codebook(codebook)
    x = torch.randn(4, 8)
    vq.nearest_code(x, prepared)
    change(codebook)
    for call in (vq.nearest_code, vq.vector_quantize):
        with pytest.raises(
            ValueError, match=f"codebook is a PreparedCodebook whose tensor has changed.*{words}"
        ):
            call(x, prepared)
    with pytest.raises(ValueError, match="has changed"):
        pickle.dumps(prepared)


def test_a_layer_that_was_trained_is_an_error() -> None:
    """Of its codebook a view was prepared; a step of other parameters changes nothing."""
    layer, other = vq.FusedVectorQuantizer(8, 30, learnable_codebook=True), nn.Linear(8, 8)
    x = torch.randn(4, 8)
    prepared = vq.prepare_codebook(layer.codebook)
    for module, loss in ((other, other(x).sum()), (layer, layer(x)[2])):
        vq.nearest_code(x, prepared)
        loss.backward()
        torch.optim.SGD(module.parameters(), lr=0.1, fused=True).step()
    with pytest.raises(ValueError, match="has changed"):
        vq.nearest_code(x, prepared)


def test_other_data_at_the_same_address_is_an_error() -> None:
    """Of two exchanges the second may bring the first address back, were its memory given away."""
    x, parameter = torch.randn(100, 8), nn.Parameter(torch.randn(512, 8))
    for _ in range(20):
        prepared = vq.prepare_codebook(parameter)
        parameter.data = torch.randn(512, 8)
        parameter.data = torch.randn(512, 8)
        with pytest.raises(ValueError, match=r"has changed since \(address"):
            vq.nearest_code(x, prepared)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("learnable", [True, False])
def test_codes_that_a_layer_computes_are_watched_in_the_layer(
    learnable: bool, cosine: bool, training: bool
) -> None:
    """``layer.codebook`` is made anew at each access where the codes have unit length, or are a Parameter."""
    options = {"learnable_codebook": learnable, "use_cosine_sim": cosine, "decay": 0.1}
    layer, other = vq.FusedVectorQuantizer(8, 32, **options), vq.FusedVectorQuantizer(8, 32, **options)
    metric, x = "cosine" if cosine else "l2", torch.randn(200, 8)

    def learn() -> None:
        layer.train()
        loss = layer(x).loss
        if learnable:
            loss.backward()
            torch.optim.SGD(layer.parameters(), lr=0.1).step()

    def assign() -> None:
        layer.codebook = torch.randn(32, 8)

    changes = [learn, assign, lambda: layer.load_state_dict(other.state_dict())]
    if learnable:
        changes.append(lambda: nn.utils.vector_to_parameters(torch.randn(32 * 8), layer.parameters()))
    for change in changes:
        layer.train(training)
        prepared = vq.prepare_codebook(layer.codebook, metric=metric)
        want = vq.nearest_code(x, layer.codebook, metric=metric)
        for one in (prepared, copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
            assert torch.equal(vq.nearest_code(x, one, metric=metric), want)
        change()
        with pytest.raises(ValueError, match="has changed"):
            vq.nearest_code(x, prepared, metric=metric)


def test_what_cannot_be_seen_leaves_the_codes_of_its_making() -> None:
    codebook = torch.randn(30, 8)
    before, x = codebook.clone(), torch.randn(50, 8)
    prepared = vq.prepare_codebook(codebook)
    np.negative(codebook.numpy(), out=codebook.numpy())
    assert torch.equal(vq.nearest_code(x, prepared), vq.nearest_code(x, before))


def test_arguments_that_do_not_go_with_it() -> None:
    x, codebook = torch.randn(4, 8), torch.randn(30, 8)
    prepared = vq.prepare_codebook(codebook)
    with pytest.raises(ValueError, match="metric is 'cosine'; accepted: 'l2', for which"):
        vq.nearest_code(x, prepared, metric="cosine")
    with pytest.raises(ValueError, match="accepted: D = 8"):
        vq.nearest_code(torch.randn(4, 7), prepared)
    with pytest.raises(ValueError, match="x requires a gradient: True"):
        vq.vector_quantize(x.clone().requires_grad_(), prepared)
    with pytest.raises(ValueError, match=r"codebook_weight is 0\.5"):
        vq.vector_quantize(x, prepared, codebook_weight=0.5)
    with torch.no_grad():
        vq.vector_quantize(x.clone().requires_grad_(), prepared)


def _made_in_inference_mode() -> Tensor:
    with torch.inference_mode():
        return torch.randn(30, 8)


def test_what_cannot_be_prepared() -> None:
    with pytest.raises(ValueError, match="made in inference mode"):
        vq.prepare_codebook(_made_in_inference_mode())
    with pytest.raises(ValueError, match="looks at"):
        torch.vmap(lambda codebook: vq.prepare_codebook(codebook) and codebook)(torch.randn(2, 30, 8))
    with pytest.raises(ValueError, match="codebook has shape"):
        vq.prepare_codebook(torch.randn(8))
    with pytest.raises(ValueError, match="metric is 'dot'"):
        vq.prepare_codebook(torch.randn(30, 8), metric="dot")


def test_in_inference_mode() -> None:
    codebook, x = torch.randn(30, 8), torch.randn(9, 8)
    with torch.inference_mode():
        prepared = vq.prepare_codebook(codebook)
        assert torch.equal(vq.nearest_code(x, prepared), vq.nearest_code(x, codebook))
    assert torch.equal(vq.nearest_code(x, prepared), vq.nearest_code(x, codebook))


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies(how: Callable[[vq.PreparedCodebook], vq.PreparedCodebook]) -> None:
    codebook, x = nn.Parameter(torch.randn(600, 16)), torch.randn(300, 16)
    prepared = vq.prepare_codebook(codebook, metric="cosine")
    other = how(prepared)
    assert (other.metric, other.backend) == ("cosine", prepared.backend)
    assert torch.equal(
        vq.nearest_code(x, other, metric="cosine"), vq.nearest_code(x, codebook, metric="cosine")
    )


def test_a_deep_copy_belongs_to_the_copied_tensor() -> None:
    pair = (nn.Parameter(torch.randn(30, 8)), None)
    pair = (pair[0], vq.prepare_codebook(pair[0]))
    parameter, prepared = copy.deepcopy(pair)
    x = torch.randn(4, 8)
    pair[0].detach().zero_()
    assert torch.equal(vq.nearest_code(x, prepared), vq.nearest_code(x, parameter))
    parameter.detach().zero_()
    with pytest.raises(ValueError, match="has changed"):
        vq.nearest_code(x, prepared)


def test_where_something_looks_at_the_call_its_codes_are_searched() -> None:
    codebook, x = torch.randn(300, 16), torch.randn(90, 16)
    prepared, want = vq.prepare_codebook(codebook), vq.nearest_code(x, codebook)
    with torch.profiler.profile() as profile:
        assert torch.equal(vq.nearest_code(x, prepared), want)
    assert any(event.key == "vq_kernels::nearest_code" for event in profile.key_averages())
    batches = torch.vmap(lambda rows: vq.nearest_code(rows, prepared))(x.view(3, 30, 16))
    assert torch.equal(batches.flatten(), want)
    assert torch.equal(vq.vector_quantize(x, prepared).indices, want)


def test_inside_a_compiled_function() -> None:
    codebook, x = torch.randn(300, 16), torch.randn(90, 16)
    prepared = vq.prepare_codebook(codebook)
    compiled = torch.compile(lambda rows: vq.nearest_code(rows, prepared) + 1, backend="eager")
    assert torch.equal(compiled(x), vq.nearest_code(x, codebook) + 1)
