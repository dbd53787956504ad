"""Checkpoints: what is wrong with one, said before anything is loaded, and those of other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SOURCES = ("vector-quantize-pytorch", "zalando", "rosinality", "embedding", "encodec")


def find_problems(
    expected: Mapping[str, Tensor], state_dict: Mapping[str, Any], prefix: str, *, complete: bool
) -> list[str]:
    """One sentence per key of ``state_dict`` below ``prefix`` that does not fit ``expected``.

    Args:
        expected: names without ``prefix`` and the tensors they are to be loaded into.
        complete: also report missing and unexpected keys.
    """
    problems = []
    for name, target in expected.items():
        key = prefix + name
        if key not in state_dict:
            if complete:
                problems.append(f"{key} is missing; accepted: a tensor of shape {tuple(target.shape)}")
            continue
        value = state_dict[key]
        if not torch.overrides.is_tensor_like(value):
            problems.append(
                f"{key} is a {type(value).__name__}; accepted: a tensor of shape {tuple(target.shape)}"
            )
        elif value.shape != target.shape and not (target.ndim == 0 and value.shape == (1,)):
            problems.append(f"{key} has shape {tuple(value.shape)}; accepted: {tuple(target.shape)}")
        elif target.is_floating_point() and not value.is_floating_point() and not _is_flag(value):
            problems.append(f"{key} has dtype {value.dtype}; accepted: a floating-point dtype")
        elif value.is_floating_point() and value.device.type != "meta" and not bool(value.isfinite().all()):
            bad = int((~value.isfinite()).sum())
            problems.append(
                f"{key} of shape {tuple(value.shape)} holds {bad} NaN or infinite values; accepted: finite"
            )
    if complete:
        for key in state_dict:
            if key.startswith(prefix) and key.removeprefix(prefix) not in expected:
                problems.append(f"{key} is unexpected; accepted: {', '.join(expected)}")
    return problems


def _is_flag(value: Tensor) -> bool:
    return value.dtype == torch.bool and value.numel() == 1


def convert_state_dict(
    state_dict: Mapping[str, Tensor], *, source: str, prefix: str = ""
) -> dict[str, Tensor]:
    """A state for ``FusedVectorQuantizer.load_state_dict`` from another library's, of one codebook.

    Args:
        state_dict: the other model's whole state.
        source: ``"vector-quantize-pytorch"``; ``"zalando"`` (``_embedding.weight``, ``_ema_w``,
            ``_ema_cluster_size``); ``"rosinality"`` (``embed`` and ``embed_avg`` stored [D, K]);
            ``"embedding"`` (``embedding.weight``, as in taming-transformers, diffusers and LlamaGen);
            ``"encodec"`` (``_codebook.inited`` and unbatched shapes).
        prefix: what stands before those names, for example ``"quantize_t."`` or ``"quantizer.vq.layers.0."``.

    Raises:
        ValueError: unknown source, or a key that is missing or misshapen, by name and shape.
    """
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}; accepted: {', '.join(map(repr, SOURCES))}")
    below = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    if source == "vector-quantize-pytorch":
        _take(below, prefix, "_codebook.embed", 3)
        return below
    names = {
        "zalando": ("_embedding.weight", "_ema_w", "_ema_cluster_size"),
        "rosinality": ("embed", "embed_avg", "cluster_size"),
        "embedding": ("embedding.weight", "", ""),
        "encodec": ("_codebook.embed", "_codebook.embed_avg", "_codebook.cluster_size"),
    }[source]
    embed = _take(below, prefix, names[0], 2)
    if source == "rosinality":
        embed = embed.T
    embed_avg, cluster_size = embed, embed.new_ones(embed.shape[0])
    # Codebooks trained by gradient have no averages; each code then starts as one row.
    if names[1] in below or source in ("rosinality", "encodec"):
        embed_avg = _take(below, prefix, names[1], 2)
        embed_avg = embed_avg.T if source == "rosinality" else embed_avg
        cluster_size = _take(below, prefix, names[2], 1)
    for name, value, shape in (
        (names[1], embed_avg, embed.shape),
        (names[2], cluster_size, embed.shape[:1]),
    ):
        if value.shape != shape:
            raise ValueError(f"{prefix}{name} has shape {tuple(value.shape)}; accepted: {tuple(shape)}")
    initted = torch.ones((), dtype=torch.bool, device=embed.device)
    if source == "encodec" and "_codebook.inited" in below:
        initted = below["_codebook.inited"].reshape(()) > 0
    return {
        "_codebook.initted": initted,
        "_codebook.cluster_size": cluster_size.detach().float().reshape(1, -1).clone(),
        "_codebook.embed_avg": embed_avg.detach().float().unsqueeze(0).contiguous().clone(),
        "_codebook.embed": embed.detach().float().unsqueeze(0).contiguous().clone(),
    }


def _take(state_dict: Mapping[str, Tensor], prefix: str, name: str, ndim: int) -> Tensor:
    if name not in state_dict:
        raise ValueError(f"{prefix}{name} is missing; accepted: a tensor with {ndim} dimensions")
    value = state_dict[name]
    if not isinstance(value, Tensor) or value.ndim != ndim:
        problem = (
            f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"is a {type(value).__name__}"
        )
        raise ValueError(f"{prefix}{name} {problem}; accepted: a tensor with {ndim} dimensions")
    return value
