"""Bad input: one clear error that names the argument, its value and what is accepted; nothing half done."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vq_kernels as vq

X, E = torch.randn(7, 4), torch.randn(5, 4)
I7 = torch.zeros(7, dtype=torch.int64)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x is a list; accepted: a torch.Tensor"),
        ({"x": X.int()}, TypeError, "x has dtype torch.int32; accepted: float32"),
        ({"x": X.to_sparse()}, TypeError, "x has layout torch.sparse_coo"),
        ({"x": X[:, :3]}, ValueError, r"x has shape \(7, 3\) with D = 3 in dimension -1; accepted: D = 4"),
        ({"x": torch.zeros(())}, ValueError, r"x has shape \(\); accepted"),
        ({"x": torch.zeros(3, 0)}, ValueError, "D = 0"),
        ({"x": X[0], "channel_dim": 1}, ValueError, r"x has shape \(4,\); accepted with channel_dim=1"),
        ({"channel_dim": 2}, ValueError, "channel_dim is 2; accepted: -1"),
        ({"channel_dim": True}, ValueError, "channel_dim is True; accepted: -1, 1"),
        ({"channel_dim": 1.0}, ValueError, "channel_dim is 1.0; accepted: -1, 1"),
        ({"x": torch.nested.nested_tensor([X, X[:3]])}, TypeError, "x is a nested tensor; accepted"),
        ({"codebook": E[0]}, ValueError, r"codebook has shape \(4,\); accepted: \[K, D\]"),
        ({"codebook": E[:0]}, ValueError, r"codebook has shape \(0, 4\)"),
        ({"codebook": E.half()}, TypeError, "codebook has dtype torch.float16; accepted: float32 or x's"),
        ({"codebook": E.double()}, TypeError, "codebook has dtype torch.float64"),
        ({"codebook": E.to("meta")}, ValueError, "codebook is on meta; accepted: x's device cpu"),
        ({"metric": "l1"}, ValueError, "metric is 'l1'; accepted: 'l2', 'cosine'"),
        ({"precision": "low"}, ValueError, "precision is 'low'; accepted: 'exact', 'high', 'fast'"),
        ({"backend": "metal"}, ValueError, "backend is 'metal'; accepted: None or one of"),
        ({"backend": ["native"]}, ValueError, r"backend is \['native'\]; accepted: None or one of"),
    ],
)
def test_search_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    call = {"x": X, "codebook": E} | kwargs
    for function in (vq.nearest_code, vq.vector_quantize):
        with pytest.raises(error, match=message):
            function(
                call["x"], call["codebook"], **{k: v for k, v in kwargs.items() if k not in ("x", "codebook")}
            )


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"gradient": "gumbel"},
            ValueError,
            "gradient is 'gumbel'; accepted: 'straight_through', 'rotation_trick'",
        ),
        ({"commitment_weight": -1.0}, ValueError, "commitment_weight is -1.0; accepted"),
        ({"commitment_weight": "1"}, TypeError, "commitment_weight is '1'; accepted"),
        ({"codebook_weight": float("nan")}, ValueError, "codebook_weight is nan; accepted"),
        ({"codebook_weight": 1.0, "statistics": False}, ValueError, "statistics is False; accepted"),
        ({"mask": torch.ones(7)}, TypeError, "mask is a tensor of torch.float32; accepted: a bool tensor"),
        ({"mask": torch.ones(6, dtype=torch.bool)}, ValueError, r"mask has shape \(6,\); accepted: \(7,\)"),
        ({"mask": [True] * 7}, TypeError, "mask is a list"),
        ({"statistics": "no"}, TypeError, "statistics is 'no'; accepted: True or False"),
    ],
)
def test_vector_quantize_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        vq.vector_quantize(X, E, **kwargs)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (torch.tensor([0, 5]), ValueError, "indices holds 5; accepted: 0 to 4"),
        (torch.tensor([-1]), ValueError, "indices holds -1; accepted: 0 to 4"),
        (torch.tensor([0.0]), TypeError, "indices has dtype torch.float32; accepted: int64"),
        (torch.tensor([True]), TypeError, "indices has dtype torch.bool"),
        ([0, 1], TypeError, "indices is a list"),
        (I7.to("meta"), ValueError, "indices is on meta; accepted: the codebook's device cpu"),
    ],
)
def test_gather_arguments(indices: Any, error: type[Exception], message: str, backend: str) -> None:
    with pytest.raises(error, match=message):
        vq.gather_codes(E, indices, backend=backend)


def test_small_integer_indices_are_accepted() -> None:
    assert torch.equal(vq.gather_codes(E, I7.to(torch.uint8)), E[I7])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"indices": I7 + 5}, ValueError, "indices holds 5; accepted: -1 to 4"),
        ({"indices": I7 - 2}, ValueError, "indices holds -2; accepted: -1 to 4"),
        ({"indices": I7[:6]}, ValueError, r"indices has shape \(6,\); accepted: \(7,\)"),
        ({"codebook_size": 0}, ValueError, "codebook_size is 0; accepted: an integer of at least 1"),
        ({"codebook_size": 2.5}, TypeError, "codebook_size is 2.5; accepted: an integer"),
        ({"codebook_size": True}, TypeError, "codebook_size is True"),
    ],
)
def test_statistics_arguments(
    kwargs: dict[str, Any], error: type[Exception], message: str, backend: str
) -> None:
    call = {"indices": I7, "codebook_size": 5} | kwargs
    with pytest.raises(error, match=message):
        vq.code_statistics(X, **call, backend=backend)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"codebook": E.half()}, TypeError, "codebook has dtype torch.float16; accepted: float32"),
        ({"cluster_size": torch.ones(4)}, ValueError, r"cluster_size has shape \(4,\); accepted: \(5,\)"),
        ({"embed_avg": torch.ones(4, 5).T}, ValueError, "embed_avg has strides .* accepted: contiguous"),
        ({"counts": torch.ones(5, dtype=torch.int32)}, TypeError, "counts has dtype torch.int32; accepted"),
        ({"sums": torch.ones(5, 3)}, ValueError, r"sums has shape \(5, 3\); accepted: \(5, 4\)"),
        ({"decay": 1.5}, ValueError, "decay is 1.5; accepted: a number from 0.0 to 1.0"),
        ({"decay": None}, TypeError, "decay is None; accepted"),
        ({"eps": -1e-5}, ValueError, "eps is -1e-05; accepted"),
        ({"eps": 0}, ValueError, "eps is 0; accepted: a finite number above 0"),
        ({"eps": 1e-40}, ValueError, "eps is 1e-40; accepted: a finite number above 0"),
        ({"normalize": 1.0}, TypeError, "normalize is 1.0; accepted: True or False"),
        ({"normalize": 2}, TypeError, "normalize is 2; accepted: True or False"),
    ],
)
def test_ema_arguments_leave_everything_as_it_was(
    kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    call: dict[str, Any] = {
        "codebook": E.clone(),
        "cluster_size": torch.ones(5),
        "embed_avg": E.clone(),
        "counts": torch.ones(5, dtype=torch.int64),
        "sums": torch.ones(5, 4),
        "decay": 0.9,
        "eps": 1e-5,
    } | kwargs
    before = {k: v.clone() for k, v in call.items() if isinstance(v, torch.Tensor)}
    with pytest.raises(error, match=message):
        vq.ema_update_(**call)
    for name, t in before.items():
        assert torch.equal(call[name], t)


@pytest.mark.parametrize(
    ("first", "second"),
    [("codebook", "embed_avg"), ("codebook", "sums"), ("embed_avg", "sums"), ("cluster_size", "counts")],
)
@pytest.mark.parametrize("how", ["same", "overlapping"])
def test_ema_arguments_have_memory_of_their_own(first: str, second: str, how: str, backend: str) -> None:
    """Overlapping: the second starts where the first one's second half does."""
    call = {
        "codebook": E.clone(), "cluster_size": torch.ones(5), "embed_avg": E.clone(),
        "counts": torch.ones(5), "sums": torch.ones(5, 4),
    }  # fmt: skip
    shape = call[first].shape
    memory = torch.ones(2, *shape).flatten()
    offset = 0 if how == "same" else shape.numel() // 2
    call[first] = memory[: shape.numel()].view(shape)
    call[second] = memory[offset : offset + shape.numel()].view(shape)
    before = {name: t.clone() for name, t in call.items()}
    with pytest.raises(ValueError, match=f"{second} shares memory with {first}; accepted"):
        vq.ema_update_(**call, decay=0.9, eps=1e-5, backend=backend)
    for name, t in before.items():
        assert torch.equal(call[name], t)


def test_numpy_numbers_are_numbers() -> None:
    want = vq.vector_quantize(X, E, commitment_weight=0.25, codebook_weight=0.5).loss
    for kind in (np.float32, np.float64):
        got = vq.vector_quantize(X, E, commitment_weight=kind(0.25), codebook_weight=kind(0.5)).loss
        assert torch.equal(got, want)
    codes = E.clone()
    size, average, counts = torch.ones(5), E.clone(), torch.ones(5)
    vq.ema_update_(codes, size, average, counts, E * 2, decay=np.float32(0.5), eps=np.float32(1e-5))
    assert size.eq(1).all()


def test_tensors_whose_storage_was_freed_are_refused() -> None:
    freed, view = X.clone(), X.clone()[2:]
    freed.untyped_storage().resize_(0)
    view.untyped_storage().resize_(0)
    for x in (freed, view):
        with pytest.raises(ValueError, match="has a storage of 0 bytes; accepted"):
            vq.nearest_code(x, E)
        with pytest.raises(ValueError, match="has a storage of 0 bytes; accepted"):
            vq.vector_quantize(x, E)
        with pytest.raises(ValueError, match="has a storage of 0 bytes; accepted"):
            vq.gather_codes(x, torch.zeros(1, dtype=torch.int64))


def test_a_backend_that_cannot_serve_raises_with_the_reason() -> None:
    from vq_kernels.backends import get_backend

    with pytest.raises(ValueError, match=r"backend 'native' cannot serve this call: ."):
        vq.nearest_code(X.double(), E.double(), backend="native")
    if get_backend("cuda").unavailable_reason() is not None:
        with pytest.raises(ValueError, match=r"backend 'cuda' is not available: ."):
            vq.use_backend("cuda")


def test_use_backend_is_a_function_and_a_context() -> None:
    from vq_kernels.backends import choose

    automatic = choose("nearest_code", None, X).name
    with vq.use_backend("reference"):
        assert choose("nearest_code", None, X).name == "reference"
        with vq.use_backend(None):
            assert choose("nearest_code", None, X).name == automatic
        assert choose("nearest_code", None, X).name == "reference"
    assert choose("nearest_code", None, X).name == automatic
    with pytest.raises(ValueError, match="backend is 'metal'"):
        vq.use_backend("metal")
    assert choose("nearest_code", None, X).name == automatic


def test_available_backends_gives_reasons() -> None:
    backends = vq.available_backends()
    assert {"native", "triton", "cuda", "reference"} <= set(backends)
    assert backends["reference"] is None
    assert all(reason is None or len(reason) > 10 for reason in backends.values())
