"""Lines of docs/differences.md on the codebook, with both layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import vector_quantize_pytorch.vector_quantize_pytorch as peer_module
from differences_support import LEARNABLE, layers, rows
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from vector_quantize_pytorch import VectorQuantize

from vq_kernels.distributed import is_synchronized
from vq_kernels.quantizers import FusedVectorQuantizer


def test_nearest_code_is_exact() -> None:
    theirs, ours = layers(2, 2, ema_update=False)
    codes = torch.tensor([[[5e-5, 0.0], [0.0, 0.0]]])
    theirs._codebook.embed.copy_(codes)
    ours.load_state_dict(theirs.state_dict())
    assert ours(torch.zeros(1, 2)).indices.item() == 1
    assert theirs(torch.zeros(1, 2))[1].item() == 0


@pytest.mark.parametrize("where", ["eval", "frozen"])
def test_kmeans_waits_for_training(where: str) -> None:
    theirs, ours = layers(kmeans_init=True)
    call = {"freeze_codebook": True} if where == "frozen" else {}
    for layer in (theirs, ours):
        layer.train(where == "frozen")(rows(), **call)
    assert theirs._codebook.initted
    assert not ours._codebook.initted
    assert torch.equal(ours.codebook, torch.zeros(16, 8))
    ours.train()(rows())
    assert ours._codebook.initted


def test_kmeans_and_revival_draw_otherwise() -> None:
    first, second, x = (torch.full((8,), -5.0), torch.full((8,), 5.0), rows(1, 64))
    for options in ({"kmeans_init": True}, {"threshold_ema_dead_code": 5.0}):
        theirs, ours = layers(**options)
        codes = []
        for layer in (theirs, ours):
            torch.manual_seed(7)
            layer(x)
            codes.append(layer.codebook.clone())
        assert not torch.allclose(codes[0], codes[1])
    few = torch.stack((first, second))[None]  # two rows for 16 codes
    theirs, ours = layers(kmeans_init=True)
    assert (ours(few).quantized - few).abs().max() < 1e-4
    theirs(few)
    assert (ours._codebook.cluster_size > 0.79).all()
    assert (theirs._codebook.cluster_size == 0).any()


def test_setting_the_codebook() -> None:
    theirs, ours = layers(decay=0.99)
    before, codes = theirs.codebook.clone(), torch.randn(16, 8)
    for layer in (theirs, ours):
        layer.codebook = codes
        layer(codes)  # each code takes itself
    torch.testing.assert_close(ours.codebook, codes, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(theirs.codebook, before, rtol=0.05, atol=0.1)
    theirs.codebook = torch.zeros(8)
    with pytest.raises(ValueError, match=r"codebook has shape \(8,\); accepted: \(16, 8\)"):
        ours.codebook = torch.zeros(8)
    theirs, ours = layers(kmeans_init=True)
    for layer in (theirs, ours):
        layer.codebook = codes
    assert ours._codebook.initted
    assert not theirs._codebook.initted
    theirs, ours = layers(**LEARNABLE)
    ours.codebook = codes
    with pytest.raises(RuntimeError, match="leaf"):
        theirs.codebook = codes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_codebook_stays_float32(dtype: torch.dtype) -> None:
    theirs, ours = (layer.to(dtype) for layer in layers())
    for name in ("embed", "embed_avg", "cluster_size"):
        assert getattr(ours._codebook, name).dtype == torch.float32
        assert getattr(theirs._codebook, name).dtype == dtype


def test_cosine_codes_have_unit_length() -> None:
    theirs, ours = layers(use_cosine_sim=True)
    state = theirs.state_dict()
    state["_codebook.embed"] = state["_codebook.embed"] * (torch.rand(1, 16, 1) + 0.5)
    for layer in (theirs, ours):
        layer.load_state_dict(state)
    torch.testing.assert_close(ours.codebook.norm(dim=-1), torch.ones(16))
    assert torch.equal(theirs.codebook, state["_codebook.embed"][0])
    x = rows()
    nearest = (F.normalize(x, dim=-1) @ F.normalize(state["_codebook.embed"][0], dim=-1).T).argmax(-1)
    assert torch.equal(ours.eval()(x).indices, nearest)
    assert not torch.equal(theirs.eval()(x)[1], nearest)


def test_cosine_code_without_rows() -> None:
    theirs, ours = layers(4, 2, use_cosine_sim=True)
    state = theirs.state_dict()
    codes = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [-0.6, 0.8, 0.0, 0.0]]])
    scale = torch.tensor([[1.0, 1e-13]])  # the second has taken no row for long
    state |= {"_codebook.embed": codes, "_codebook.embed_avg": codes * scale[..., None]}
    state["_codebook.cluster_size"] = scale
    for layer in (theirs, ours):
        layer.load_state_dict(state)
        for _ in range(20):
            layer(codes[:, :1])
    torch.testing.assert_close(ours.codebook[1], codes[0, 1])
    assert theirs.codebook[1].norm() < 0.1


def test_learnable_alone() -> None:
    assert not FusedVectorQuantizer(8, 16, learnable_codebook=True)._codebook.ema_update
    FusedVectorQuantizer(8, 16, learnable_codebook=True, use_cosine_sim=True)(rows()).loss.backward()
    with pytest.raises(AssertionError, match="EMA"):
        VectorQuantize(8, 16, learnable_codebook=True)
    with pytest.raises(AssertionError, match="cosine"):
        VectorQuantize(8, 16, use_cosine_sim=True, **LEARNABLE)


def test_manual_update() -> None:
    theirs, ours = layers(manual_ema_update=True)
    codes, batches = ours.codebook.clone(), [rows() for _ in range(2)]
    one = layers()[1]
    one.load_state_dict(ours.state_dict())
    one(torch.cat(batches))
    for layer in (theirs, ours):
        for batch in batches:
            layer(batch)
        assert torch.equal(layer.codebook, codes)
    assert torch.equal(ours._codebook.cluster_size, torch.ones(1, 16))
    assert not torch.equal(theirs._codebook.cluster_size, torch.ones(1, 16))
    ours.update_ema()
    theirs._codebook.update_ema()
    torch.testing.assert_close(ours._codebook.cluster_size, one._codebook.cluster_size)
    torch.testing.assert_close(ours.codebook, one.codebook)
    assert not torch.allclose(theirs._codebook.cluster_size, one._codebook.cluster_size)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_counts_once(reentrant: bool) -> None:
    theirs, ours = layers()
    plain = copy.deepcopy(ours)
    x, sizes, grads = rows(40), [], []
    for layer in (theirs, ours, plain):
        t = x.clone().requires_grad_()

        def region(u: Tensor, layer: torch.nn.Module = layer) -> Tensor:
            return layer(u)[0].tanh()

        y = region(t) if layer is plain else checkpoint(region, t, use_reentrant=reentrant)
        y.square().sum().backward()
        sizes.append(layer._codebook.cluster_size.clone())
        grads.append(t.grad)
    assert torch.equal(sizes[1], sizes[2])
    assert torch.equal(grads[1], grads[2])
    assert not torch.allclose(sizes[0], sizes[2])
    assert not torch.allclose(grads[0], grads[2], rtol=0.01)


def test_ranks_are_counted_late(monkeypatch: pytest.MonkeyPatch) -> None:
    peer_module.is_distributed.cache_clear()
    theirs, ours = layers()
    for module in (torch.distributed, peer_module.distributed):
        monkeypatch.setattr(module, "is_initialized", lambda: True)
        monkeypatch.setattr(module, "get_world_size", lambda group=None: 2)
    try:
        assert not theirs._codebook.use_ddp
        assert not VectorQuantize(8, 16)._codebook.use_ddp
        assert is_synchronized(ours.sync_codebook, ours._codebook.group)
    finally:
        peer_module.is_distributed.cache_clear()


def test_states_must_be_finite() -> None:
    theirs, ours = layers()
    state = theirs.state_dict() | {"_codebook.embed_avg": torch.full((1, 16, 8), torch.inf)}
    theirs.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"_codebook.embed_avg .* holds 128 NaN or infinite values"):
        ours.load_state_dict(state)
    state = {"_codebook.embed": torch.zeros(1, 15, 8), "_codebook.cluster_size": torch.full((1, 16), 3.0)}
    for layer in (theirs, ours):
        with pytest.raises(RuntimeError, match="_codebook"):
            layer.load_state_dict(state, strict=False)
    assert (theirs._codebook.cluster_size == 3).all()
    assert (ours._codebook.cluster_size == 1).all()
