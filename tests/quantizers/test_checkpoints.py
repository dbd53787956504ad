"""Loading: what does not fit is named and nothing is half loaded; checkpoints of other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vq_kernels.quantizers import FusedVectorQuantizer, convert_state_dict

State = dict[str, Any]


def _without(key: str) -> Callable[[State], None]:
    return lambda state: state.pop(key)


def _with(key: str, value: Any) -> Callable[[State], None]:
    return lambda state: state.__setitem__(key, value)


# name -> (how the checkpoint is spoiled, what the message must hold)
SPOILED: dict[str, tuple[Callable[[State], None], list[str]]] = {
    "other_codebook_size": (
        _with("_codebook.embed", torch.zeros(1, 7, 3)),
        ["_codebook.embed", "(1, 7, 3)", "(1, 9, 3)"],
    ),
    "unbatched_size": (_with("_codebook.cluster_size", torch.zeros(9)), ["_codebook.cluster_size", "(1, 9)"]),
    "projection": (_with("project_out.bias", torch.zeros(2)), ["project_out.bias", "(2,)", "(6,)"]),
    "missing": (_without("_codebook.embed_avg"), ["_codebook.embed_avg is missing", "(1, 9, 3)"]),
    "unexpected": (_with("_codebook.batch_mean", torch.zeros(3)), ["_codebook.batch_mean is unexpected"]),
    "not_a_tensor": (_with("_codebook.embed", [1.0]), ["_codebook.embed is a list"]),
    "integers": (
        _with("_codebook.embed", torch.zeros(1, 9, 3, dtype=torch.int64)),
        ["_codebook.embed", "int64"],
    ),
    "nan": (
        _with("_codebook.embed_avg", torch.full((1, 9, 3), torch.nan)),
        ["_codebook.embed_avg", "27", "(1, 9, 3)"],
    ),
}


def layer_and_state() -> tuple[FusedVectorQuantizer, State]:
    layer = FusedVectorQuantizer(6, 9, codebook_dim=3)
    other = FusedVectorQuantizer(6, 9, codebook_dim=3)
    other(torch.randn(30, 6))
    return layer, {k: v.clone() for k, v in other.state_dict().items()}


@pytest.mark.parametrize("case", SPOILED)
def test_a_misfit_is_named_and_nothing_is_loaded(case: str) -> None:
    spoil, words = SPOILED[case]
    layer, state = layer_and_state()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    spoil(state)
    with pytest.raises(RuntimeError) as error:
        layer.load_state_dict(state)
    for word in words:
        assert word in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("case", ["other_codebook_size", "projection", "nan"])
def test_inside_a_model_a_misfit_leaves_the_layer_as_it_was(case: str) -> None:
    spoil, _ = SPOILED[case]
    layer, state = layer_and_state()
    model = nn.Sequential(nn.Linear(6, 6), layer)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    spoil(state)
    state = {f"1.{k}": v for k, v in state.items()} | {f"0.{k}": v for k, v in model[0].state_dict().items()}
    with pytest.raises(RuntimeError, match=r"1\."):
        model.load_state_dict(state)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_without_strict_missing_and_unexpected_keys_are_reported_back() -> None:
    layer, state = layer_and_state()
    _without("_codebook.embed_avg")(state)
    _with("other", torch.zeros(1))(state)
    result = layer.load_state_dict(state, strict=False)
    assert result.missing_keys == ["_codebook.embed_avg"]
    assert result.unexpected_keys == ["other"]
    assert torch.equal(layer._codebook.embed, state["_codebook.embed"])


def test_half_precision_checkpoints_and_old_flags_load() -> None:
    layer, state = layer_and_state()
    state = {k: v.half() for k, v in state.items()}
    state["_codebook.initted"] = torch.tensor([1.0])  # shape [1] in early releases of the peer
    layer.load_state_dict(state)
    assert layer.codebook.dtype == torch.float32
    assert layer._codebook.initted


@pytest.mark.parametrize("assign", [False, True])
def test_a_layer_made_on_the_meta_device_loads(assign: bool) -> None:
    _, state = layer_and_state()
    with torch.device("meta"):
        layer = FusedVectorQuantizer(6, 9, codebook_dim=3, kmeans_init=True)
    if not assign:
        layer.to_empty(device="cpu")
    layer.load_state_dict(state, assign=assign)
    assert not layer._codebook.needs_init
    assert torch.equal(layer.codebook, state["_codebook.embed"][0])
    layer(torch.randn(4, 6))


def _others(
    embed: Tensor, average: Tensor, size: Tensor
) -> dict[str, tuple[str, str, dict[str, Tensor], bool]]:
    """name -> (source, prefix, state, whether it holds the averages)."""
    return {
        "zalando": (
            "zalando",
            "_vq_vae.",
            {
                "_vq_vae._embedding.weight": embed,
                "_vq_vae._ema_w": average,
                "_vq_vae._ema_cluster_size": size,
                "_encoder.x": torch.zeros(1),
            },
            True,
        ),
        "zalando_gradient": ("zalando", "_vq_vae.", {"_vq_vae._embedding.weight": embed}, False),
        "rosinality": (
            "rosinality",
            "quantize_t.",
            {"quantize_t.embed": embed.T, "quantize_t.embed_avg": average.T, "quantize_t.cluster_size": size},
            True,
        ),
        "embedding": ("embedding", "quantize.", {"quantize.embedding.weight": embed}, False),
        "encodec": (
            "encodec",
            "vq.layers.0.",
            {
                "vq.layers.0._codebook.inited": torch.ones(1),
                "vq.layers.0._codebook.cluster_size": size,
                "vq.layers.0._codebook.embed": embed,
                "vq.layers.0._codebook.embed_avg": average,
            },
            True,
        ),
    }


OTHERS = list(_others(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1)))


@pytest.mark.parametrize("case", OTHERS)
def test_checkpoints_of_other_libraries_load(case: str) -> None:
    embed, average, size = torch.randn(9, 6), torch.randn(9, 6), torch.rand(9) + 1
    source, prefix, state, averages = _others(embed, average, size)[case]
    layer = FusedVectorQuantizer(6, 9, kmeans_init=True)
    layer.load_state_dict(convert_state_dict(state, source=source, prefix=prefix))
    assert layer._codebook.initted
    assert torch.equal(layer.codebook, embed)
    assert torch.equal(layer._codebook.embed_avg[0], average if averages else embed)
    assert torch.equal(layer._codebook.cluster_size[0], size if averages else torch.ones(9))


def test_the_state_of_a_whole_model_of_the_peer_is_cut_out_by_prefix() -> None:
    layer, state = layer_and_state()
    whole = {f"vq.{k}": v for k, v in state.items()} | {"encoder.weight": torch.zeros(3)}
    layer.load_state_dict(convert_state_dict(whole, source="vector-quantize-pytorch", prefix="vq."))
    assert torch.equal(layer._codebook.embed, state["_codebook.embed"])


@pytest.mark.parametrize(
    ("source", "state", "words"),
    [
        ("sonnet", {}, ["source", "sonnet", "encodec"]),
        ("rosinality", {}, ["q.embed", "missing"]),
        ("rosinality", {"q.embed": torch.zeros(2, 3, 4)}, ["q.embed", "(2, 3, 4)"]),
        ("embedding", {"q.embedding.weight": [1]}, ["q.embedding.weight", "list"]),
        (
            "zalando",
            {
                "q._embedding.weight": torch.zeros(9, 6),
                "q._ema_w": torch.zeros(9, 5),
                "q._ema_cluster_size": torch.zeros(9),
            },
            ["q._ema_w", "(9, 5)", "(9, 6)"],
        ),
    ],
    ids=["unknown_source", "missing", "shape", "not_a_tensor", "mismatch"],
)
def test_a_checkpoint_that_cannot_be_converted_says_why(source: str, state: State, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        convert_state_dict(state, source=source, prefix="q.")
    for word in words:
        assert word in str(error.value)


SETTERS = {
    "load_state_dict": lambda layer, codes: layer.load_state_dict(
        layer.state_dict() | {"_codebook.embed": codes[None]}
    ),
    "converted": lambda layer, codes: layer.load_state_dict(
        convert_state_dict({"embedding.weight": codes}, source="embedding")
    ),
    "assigned": lambda layer, codes: setattr(layer, "codebook", codes),
    "copied": lambda layer, codes: layer._codebook.embed.copy_(codes[None]),
    "copied_to_data": lambda layer, codes: layer._codebook.embed.data.copy_(codes[None]),
}


@pytest.mark.parametrize("setter", SETTERS)
@pytest.mark.parametrize("learnable", [False, True], ids=["ema", "learnable"])
def test_codes_of_any_length_are_searched_on_the_sphere(setter: str, learnable: bool) -> None:
    """As LlamaGen stores them: it normalises its weights in every forward."""
    torch.manual_seed(0)
    codes = torch.randn(32, 6)
    codes *= (torch.rand(32, 1) + 0.5) / codes.norm(dim=1, keepdim=True)
    layer = FusedVectorQuantizer(6, 32, use_cosine_sim=True, learnable_codebook=learnable).eval()
    with torch.no_grad():
        SETTERS[setter](layer, codes)
    x = torch.randn(200, 6)
    unit = torch.nn.functional.normalize(codes.double(), dim=1)
    assert torch.equal(layer(x).indices, (x.double() @ unit.T).argmax(1))
    torch.testing.assert_close(layer.codebook, unit.float())
