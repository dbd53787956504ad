"""The likelihood study at the scale of the paper: what it builds, and that a step of it can be trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models import VQVAE
from models.codes.description import CodeDescription
from models.data.kinds.image import Images
from models.runs.build import build_model, build_priors
from models.runs.config import PriorConfig, TrainConfig
from models.studies import likelihood

CIFAR: Any = SimpleNamespace(channels=3, size=(32, 32), variance=0.063, name="made", kind=Images((32, 32), 3))


def model(**changes: Any) -> Any:
    torch.manual_seed(0)
    return build_model(TrainConfig(**likelihood.SETTINGS["paper"] | changes), CIFAR)


def test_640_codes_an_image_and_the_prior_over_them_train() -> None:
    vqvae = model()
    x = torch.rand(2, 3, 32, 32) - 0.5
    output = vqvae(x)
    output.loss.backward()
    (codes,) = output.codes
    assert codes.shape == (2, 8, 8, 10)
    assert vqvae.codebook_sizes == ((512,) * 10,)
    assert all(p.grad is not None for p in vqvae.parameters())
    description = CodeDescription(
        shapes=vqvae.code_shapes((32, 32)), codebook_sizes=vqvae.codebook_sizes, class_names=(), data="made",
        model="", weights="", settings={}, sizes={}, shard_size=1,
    )  # fmt: skip
    settings = likelihood.PRIORS["paper"] | {"conditional": False}
    (prior,) = build_priors(PriorConfig(codes="made", **settings), description)
    assert (prior.config["width"], prior.config["layers"], prior.config["heads"]) == (256, 8, 8)
    loss = -prior(codes).mean() / 640
    loss.backward()
    assert loss.item() == pytest.approx(6.24, abs=0.5)  # log 512: nothing is learnt yet
    assert all(p.grad is None or p.grad.isfinite().all() for p in prior.parameters())


@pytest.mark.parametrize("decoder", ["independent", "autoregressive"])
@pytest.mark.parametrize("kind", ["vae", "vqvae"])
def test_the_models_of_the_theory_can_be_built(kind: str, decoder: str) -> None:
    built = model(model=kind, decoder=decoder, hidden=16, **likelihood.COLLAPSE["paper"])
    assert (built.pixels is None) == (decoder == "independent")


def test_few_maps_are_few_and_pictures_have_two_dimensions() -> None:
    few: VQVAE = model(**likelihood.FEW_MAPS["paper"])
    assert few.code_shapes((32, 32)) == ((2, 2),)
    assert few.codebook_sizes == ((8,),)
    flat = model(**likelihood.TWO_DIMENSIONS["paper"])
    assert flat.config["embedding_dim"] * flat.config["heads"] == 2
