"""What a layer knows lives in its buffers, wherever they come from; and they are what kernels ask for."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vq_kernels import FusedVectorQuantizer


def trained(**options: Any) -> FusedVectorQuantizer:
    layer = FusedVectorQuantizer(8, 16, **options)
    layer(torch.randn(200, 8))
    return layer


def codes_in_use(layer: FusedVectorQuantizer) -> int:
    return int((layer(torch.randn(500, 8)).indices.bincount(minlength=16) > 0).sum())


# --- initialisation -------------------------------------------------------------------------------


def test_calls_on_copies_of_the_buffers_leave_the_layer_as_it_was() -> None:
    layer = FusedVectorQuantizer(8, 16, kmeans_init=True)
    copies = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    torch.func.functional_call(layer, copies, torch.randn(200, 8))
    assert copies["_codebook.initted"]
    assert not layer._codebook.initted
    assert layer._codebook.needs_init
    assert codes_in_use(layer) > 8


@pytest.mark.parametrize("how", ["copy_", "data", "setattr"])
def test_codes_that_came_with_the_buffers_are_not_initialised_again(how: str) -> None:
    source, layer = trained(kmeans_init=True), FusedVectorQuantizer(8, 16, kmeans_init=True, decay=1.0)
    with torch.no_grad():
        for name, value in source._codebook.named_buffers():
            target = getattr(layer._codebook, name)
            if how == "data":
                target.data.copy_(value)  # data's version is not the buffer's: nobody on the host can know
            elif how == "setattr":
                setattr(layer._codebook, name, value.clone())
            else:
                target.copy_(value)
    layer(torch.randn(300, 8))
    torch.testing.assert_close(layer.codebook, source.codebook, rtol=1e-3, atol=1e-3)


def test_a_copied_layer_knows_what_the_original_knows() -> None:
    fresh = FusedVectorQuantizer(8, 16, kmeans_init=True)
    assert copy.deepcopy(fresh)._codebook.needs_init
    assert not copy.deepcopy(trained(kmeans_init=True))._codebook.needs_init
    fresh._codebook.initted.fill_(True)
    assert not copy.deepcopy(fresh)._codebook.needs_init
    assert not fresh._codebook.needs_init


def test_the_host_reads_the_buffer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, reads = trained(kmeans_init=True), 0

    def count(t: Tensor) -> bool:
        nonlocal reads
        reads += 1
        return bool(t.item())

    monkeypatch.setattr(Tensor, "__bool__", count)
    for _ in range(3):
        layer(torch.randn(20, 8))
    assert reads == 0
    layer._codebook.initted.logical_and_(torch.tensor(True))
    for _ in range(3):
        layer(torch.randn(20, 8))
    assert reads == 1


# --- codebooks that cannot be written to --------------------------------------------------------------


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize(
    "options",
    [{}, {"kmeans_init": True}, {"learnable_codebook": True, "threshold_ema_dead_code": 1.0}],
    ids=["ema", "kmeans", "revival"],
)
@pytest.mark.parametrize("name", ["embed", "embed_avg"])
def test_a_parametrized_codebook_that_would_be_written_to_is_refused(
    name: str, options: dict[str, Any]
) -> None:
    layer = FusedVectorQuantizer(8, 16, **options)
    parametrize.register_parametrization(layer._codebook, name, Doubled())
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=f"{name} of the codebook is parametrized; accepted"):
        layer(torch.randn(20, 8))
    with pytest.raises(RuntimeError, match=f"{name} of the codebook is parametrized; accepted"):
        layer.codebook = torch.randn(16, 8)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])
    layer.eval()(torch.randn(20, 8))


def test_a_parametrized_codebook_that_learns_by_gradient_learns() -> None:
    layer = FusedVectorQuantizer(8, 16, learnable_codebook=True)
    parametrize.register_parametrization(layer._codebook, "embed", Doubled())
    layer(torch.randn(20, 8)).loss.backward()
    original = layer._codebook.parametrizations.embed.original
    assert original.grad is not None
    assert original.grad.abs().sum() > 0


# --- gradients of codes that are revived ---------------------------------------------------------------

NAMES = ("rotation_trick", "codebook_weight", "heads", "separate_codebook_per_head")
SETTINGS = [
    dict(zip(NAMES, values, strict=True))
    for values in itertools.product((True, False), (None, 0.5), (1, 2), (False, True))
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_learnable_cosine_codes_that_revive_have_gradients(settings: dict[str, Any]) -> None:
    torch.manual_seed(3)
    options: dict[str, Any] = {
        "learnable_codebook": True,
        "use_cosine_sim": True,
        "codebook_dim": 8 // settings["heads"],
        **settings,
    }
    grads = []
    for threshold in (0.0, 1.0):
        torch.manual_seed(3)
        layer = FusedVectorQuantizer(8, 16, threshold_ema_dead_code=threshold, **options)
        out = layer(torch.randn(40, 8))
        out.loss.backward()
        grads.append(layer._codebook.embed.grad)
    torch.testing.assert_close(grads[1], grads[0])


# --- states that are assigned --------------------------------------------------------------------------


def as_dtype(dtype: torch.dtype) -> Any:
    return lambda t: t.to(dtype) if t.is_floating_point() else t


STATES = {
    "bfloat16": as_dtype(torch.bfloat16),
    "float64": as_dtype(torch.float64),
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
    "initted_of_early_releases": lambda t: torch.tensor([1.0]) if t.ndim == 0 else t,
}


@pytest.mark.parametrize("options", [{}, {"learnable_codebook": True}, {"use_cosine_sim": True}], ids=str)
@pytest.mark.parametrize("kind", STATES)
def test_a_state_that_is_assigned_is_brought_to_what_kernels_ask_for(
    kind: str, options: dict[str, Any]
) -> None:
    source = trained(**options)
    state = {key: STATES[kind](value) for key, value in source.state_dict().items()}
    copied, assigned = FusedVectorQuantizer(8, 16, **options), FusedVectorQuantizer(8, 16, **options)
    copied.load_state_dict(state)
    assigned.load_state_dict(state, assign=True)
    x = torch.randn(50, 8)
    for _ in range(2):
        for got, want in zip(assigned(x), copied(x), strict=True):
            assert torch.equal(got, want)
    for key, value in copied.state_dict().items():
        assert torch.equal(assigned.state_dict()[key], value)
    assert isinstance(assigned._codebook.embed, nn.Parameter) == bool(options.get("learnable_codebook"))
