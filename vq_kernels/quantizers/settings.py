"""Checks of constructor and call arguments, and what to do about options that are not offered here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..backends import get_backend
from ..checks import check_choice, check_flag, check_integer, check_number, check_positive
from ..functional import PRECISIONS

# Options of vector-quantize-pytorch's VectorQuantize that have no counterpart: the default at which
# they change nothing (and are therefore accepted), and what to use instead.
UNSUPPORTED_OPTIONS: dict[str, tuple[object, str]] = {
    "sync_kmeans": (True, "k-means always runs over all ranks, otherwise their codebooks differ"),
    "commitment_use_cross_entropy_loss": (
        False,
        "use commitment_weight (a cross entropy needs N x K distances)",
    ),
    "orthogonal_reg_weight": (0.0, "add a penalty on `layer.codebook` to your loss"),
    "orthogonal_reg_active_codes_only": (False, "add a penalty on `layer.codebook` to your loss"),
    "orthogonal_reg_max_codes": (None, "add a penalty on `layer.codebook` to your loss"),
    "codebook_diversity_loss_weight": (0.0, "use threshold_ema_dead_code against codebook collapse"),
    "codebook_diversity_temperature": (100.0, "use threshold_ema_dead_code against codebook collapse"),
    "stochastic_sample_codes": (False, "the nearest code is always taken"),
    "sample_codebook_temp": (1.0, "the nearest code is always taken"),
    "straight_through": (False, "rotation_trick=False is the plain straight-through estimator"),
    "directional_reparam": (False, "use learnable_codebook=True with rotation_trick"),
    "directional_reparam_variance": (5e-3, "use learnable_codebook=True with rotation_trick"),
    "sync_affine_param": (False, "normalise the input before the layer"),
    "vq_bridge": (None, "use learnable_codebook=True"),
    "in_place_codebook_optimizer": (None, "use learnable_codebook=True and your own optimizer"),
    "manual_in_place_optimizer_update": (False, "use learnable_codebook=True and your own optimizer"),
    "affine_param": (False, "normalise the input before the layer"),
    "affine_param_batch_decay": (0.99, "normalise the input before the layer"),
    "affine_param_codebook_decay": (0.9, "normalise the input before the layer"),
    "sync_update_v": (0.0, "use learnable_codebook=True with codebook_weight"),
    "route_gradients_to_input": (True, "detach the input of the layer"),
}

UNSUPPORTED_CALL_OPTIONS: dict[str, tuple[object, str]] = {
    "indices": (None, "take the cross entropy of your own logits with the indices returned"),
    "topk": (None, "the single nearest code is returned"),
    "sample_codebook_temp": (None, "the nearest code is always taken"),
    "return_loss_breakdown": (False, "the loss has one squared error, weighted by commitment_weight"),
    "codebook_transform_fn": (None, "transform the input before the layer"),
    "ema_update_weight": (None, "use decay, or mask to leave rows out"),
    "accum_ema_update": (False, "construct with manual_ema_update=True and call update_ema()"),
    "ema_update": (None, "pass freeze_codebook=True to leave the codebook as it is"),
}


def reject_unsupported(given: Mapping[str, object], known: dict[str, tuple[object, str]], where: str) -> None:
    """TypeError that names the remedy, unless each option stands at the default that changes nothing."""
    for name, value in given.items():
        if name not in known:
            raise TypeError(f"{where} got an unknown argument {name!r} = {value!r}; see its documentation")
        default, remedy = known[name]
        if isinstance(value, Tensor) or (value is not default and value != default):
            raise TypeError(f"{where} does not support {name} = {value!r}; accepted: {default!r}. {remedy}")


_HIGHEST = {"decay": 1.0}  # of the numbers that have an upper bound
_POSITIVE = ("eps",)  # numbers that may not be 0


def check_settings(constructor: Callable[..., None], settings: Mapping[str, Any]) -> None:
    """Check the constructor's arguments, by name, once: each alone, then those that exclude each other.

    What a single one may be follows from its annotation: ``bool`` True or False, ``int`` an integer of at
    least 1, ``float`` a number of at least 0, and with ``| None`` None too.
    """
    for name, annotation in constructor.__annotations__.items():
        kind, _, none = annotation.partition(" | ")
        value = settings.get(name)
        if value is None and none:
            continue
        if kind == "bool":
            check_flag(**{name: value})
        elif kind == "int":
            check_integer(1, **{name: value})
        elif name in _POSITIVE:
            check_positive(**{name: value})
        elif kind == "float":
            check_number(0.0, _HIGHEST.get(name, math.inf), **{name: value})
    check_choice(PRECISIONS, precision=settings["precision"])
    if settings["backend"] is not None:
        get_backend(settings["backend"])  # raises for an unknown name
    if settings["accept_image_fmap"] and settings["accept_3d_fmap"]:
        raise ValueError("accept_image_fmap and accept_3d_fmap are both True; accepted: one of them")
    if settings["ema_update"] and settings["learnable_codebook"]:
        raise ValueError("ema_update and learnable_codebook are both True; accepted: one of them")
    if settings["manual_ema_update"] and (settings["ema_update"] is False or settings["learnable_codebook"]):
        raise ValueError("manual_ema_update is True for a codebook without EMA; accepted: False")
    if settings["codebook_weight"] and not settings["learnable_codebook"]:
        raise ValueError(
            f"codebook_weight is {settings['codebook_weight']!r} without learnable_codebook; "
            "accepted: None or 0"
        )
