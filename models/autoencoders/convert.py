"""Checkpoints of two widely used implementations as models of this package.

- rosinality/vq-vae-2-pytorch, trained on images in -1..1: a :class:`models.VQVAE2`;
- the zalandoresearch VQ-VAE notebook, images in -0.5..0.5: a :class:`models.VQVAE`, whose residual blocks
  get ``relu_skip`` because an in-place ReLU there rectified what the skip carried.

The converted model takes and gives images in -0.5..0.5, like all models here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.autoencoders.vqvae import VQVAE
from models.autoencoders.vqvae2 import VQVAE2
from models.pretrained import load_weights

State = Mapping[str, Tensor]


def convert_file(path: str | Path) -> VQVAE | VQVAE2:
    """Read a checkpoint (no code in it is run) and convert it. Raises ValueError saying what does not fit."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; give the .pt file of a checkpoint")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint can make unpickling raise anything
        raise ValueError(
            f"{file} is no checkpoint that torch.load reads without running code in it"
        ) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{file} holds a {type(loaded).__name__}, expected a state_dict: names and tensors")
    state = {str(key).removeprefix("module."): value for key, value in loaded.items()}
    if "quantize_t.embed" in state:
        return convert_rosinality(state, str(file))
    if "_vq_vae._embedding.weight" in state:
        return convert_zalando(state, str(file))
    raise ValueError(
        f"{file} is neither a VQ-VAE-2 of rosinality (key quantize_t.embed) nor a VQ-VAE of the zalando "
        f"notebook (key _vq_vae._embedding.weight); its first keys are {', '.join(list(state)[:3])}"
    )


def convert_rosinality(state: State, source: str = "checkpoint") -> VQVAE2:
    """From the ``state_dict`` of rosinality's ``VQVAE``; sizes are read off the shapes."""
    layers = _count(state, r"enc_b\.blocks\.(\d+)\.conv\.1\.weight")
    hidden = _shape(state, "enc_b.blocks.2.weight", source)[0]
    names: dict[str, str] = {}
    for level, (ours, theirs, convolutions) in enumerate(
        (("encoders.0", "enc_b", (0, 2, 4)), ("encoders.1", "enc_t", (0, 2)))
    ):
        names |= {f"{theirs}.blocks.{convolutions[-1]}": f"{ours}.conv"}
        names |= {f"{theirs}.blocks.{c}": f"{ours}.down.{i}" for i, c in enumerate(convolutions[:-1])}
        names |= _rosinality_blocks(f"{theirs}.blocks", f"{ours}.residual", convolutions[-1] + 1, layers)
        quantizer = "bt"[level]
        names |= {f"quantize_conv_{quantizer}": f"to_embedding.{level}"}
    for ours, theirs, doublings in (("conditioners.0", "dec_t", 1), ("decoder", "dec", 2)):
        names |= {f"{theirs}.blocks.0": f"{ours}.conv"}
        names |= _rosinality_blocks(f"{theirs}.blocks", f"{ours}.residual", 1, layers)
        names |= {f"{theirs}.blocks.{layers + 2 + 2 * i}": f"{ours}.up.{i}" for i in range(doublings)}
    names["upsample_t"] = "upsamplers.0.0"
    dim, size = _shape(state, "quantize_t.embed", source)
    model = VQVAE2(
        _shape(state, "enc_b.blocks.0.weight", source)[1],
        hidden=hidden,
        residual_layers=layers,
        residual_hidden=_residual_hidden(state, "enc_b.blocks.5.conv.1.weight", layers, source),
        embedding_dim=dim,
        codebook_size=size,
    )
    converted = _rename(state, names)
    for level, quantizer in enumerate("bt"):
        parts = {part: converted.pop(f"quantize_{quantizer}.{part}", None) for part in CODEBOOK_PARTS}
        converted |= _codebook(f"quantizers.{level}", {k: v.t() for k, v in parts.items() if v is not None})
    # Their images span -1..1, ours half of that.
    for key, factor in (
        ("encoders.0.down.0.weight", 2.0),
        ("decoder.up.1.weight", 0.5),
        ("decoder.up.1.bias", 0.5),
    ):
        if key in converted:
            converted[key] = converted[key] * factor
    return _filled(model, converted, source)


def convert_zalando(state: State, source: str = "checkpoint") -> VQVAE:
    """From the ``state_dict`` of the notebook's ``Model``, with an EMA or a gradient codebook."""
    layers = _count(state, r"_encoder\._residual_stack\._layers\.(\d+)\._block\.1\.weight")
    block = "_encoder._residual_stack._layers.0._block.1.weight"
    names = {"_pre_vq_conv": "to_embedding"}
    for theirs, ours in (("_encoder", "encoder"), ("_decoder", "decoder")):
        stack = f"{theirs}._residual_stack._layers"
        names |= {f"{stack}.{i}._block.1": f"{ours}.residual.{i}.conv_in" for i in range(layers)}
        names |= {f"{stack}.{i}._block.3": f"{ours}.residual.{i}.conv_out" for i in range(layers)}
    names |= {f"_encoder._conv_{i + 1}": f"encoder.down.{i}" for i in range(2)}
    names |= {"_encoder._conv_3": "encoder.conv", "_decoder._conv_1": "decoder.conv"}
    names |= {f"_decoder._conv_trans_{i + 1}": f"decoder.up.{i}" for i in range(2)}
    size, dim = _shape(state, "_vq_vae._embedding.weight", source)
    learnt_by_ema = "_vq_vae._ema_w" in state
    model = VQVAE(
        _shape(state, "_encoder._conv_1.weight", source)[1],
        hidden=_shape(state, "_encoder._conv_2.weight", source)[0],
        residual_layers=layers,
        residual_hidden=_residual_hidden(state, block, layers, source),
        embedding_dim=dim,
        codebook_size=size,
        codebook="ema" if learnt_by_ema else "gradient",
        relu_skip=True,
    )
    converted = _rename(state, names)
    embed = converted.pop("_vq_vae._embedding.weight")
    sums = converted.pop("_vq_vae._ema_w", embed)
    counts = converted.pop("_vq_vae._ema_cluster_size", torch.ones(size))
    converted |= _codebook("quantizer", {"embed": embed, "embed_avg": sums, "cluster_size": counts})
    # The notebook's residual convolutions have no bias.
    converted = {key: value for key, value in model.state_dict().items() if _is_absent_bias(key)} | converted
    for key in [key for key in converted if _is_absent_bias(key)]:
        converted[key] = torch.zeros_like(converted[key])
    return _filled(model, converted, source)


CODEBOOK_PARTS = ("embed", "embed_avg", "cluster_size")


def _is_absent_bias(key: str) -> bool:
    return ".residual." in key and key.endswith(".bias")


def _rosinality_blocks(theirs: str, ours: str, first: int, layers: int) -> dict[str, str]:
    names = {f"{theirs}.{first + i}.conv.1": f"{ours}.{i}.conv_in" for i in range(layers)}
    return names | {f"{theirs}.{first + i}.conv.3": f"{ours}.{i}.conv_out" for i in range(layers)}


def _rename(state: State, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Keys whose module is in ``names`` are renamed; others stay, to be found unknown later."""
    renamed = {}
    for key, value in state.items():
        module, _, parameter = key.rpartition(".")
        renamed[f"{names[module]}.{parameter}" if module in names else key] = value
    return renamed


def _codebook(ours: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``[K, D]`` codes and averages and ``[K]`` sizes as the state of our quantizer."""
    state = {f"{ours}._codebook.{part}": value.unsqueeze(0).float() for part, value in parts.items()}
    return state | {f"{ours}._codebook.initted": torch.tensor(True)}


def _filled(model: VQVAE | VQVAE2, converted: dict[str, Tensor], source: str) -> Any:
    likelihood = {key: value for key, value in model.state_dict().items() if key.startswith("likelihood.")}
    load_weights(model, likelihood | converted, source)
    return model.eval()


def _count(state: State, pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in state)


def _residual_hidden(state: State, key: str, layers: int, source: str) -> int:
    """Channels inside a residual block; any number will do for a model without such blocks."""
    return _shape(state, key, source)[0] if layers else 1


def _shape(state: State, key: str, source: str) -> tuple[int, ...]:
    if key not in state:
        raise ValueError(f"{source} lacks the key {key}")
    return tuple(state[key].shape)
