"""What the autoencoders refuse, by argument and value, and what they do with an empty batch."""

from __future__ import annotations

import pytest
import torch

from models import VAE, VQVAE, VQVAE2

SMALL = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 6, "codebook_size": 11}
MODELS = {
    "vqvae": lambda: VQVAE(1, **SMALL),
    "vqvae2": lambda: VQVAE2(1, downscales=(2, 2), **SMALL),
    "logistic": lambda: VQVAE(1, codebook="gradient", likelihood="logistic", **SMALL),
    "vae": lambda: VAE(1, (8, 12), latent_dim=3, channels=(4, 4, 4, 4)),
    "categorical": lambda: VAE(1, (8, 12), latent_dim=3, channels=(4, 4, 4, 4), likelihood="categorical"),
}


@pytest.mark.parametrize("kind", [VQVAE, VQVAE2])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ndim": 4}, "ndim must be 1, 2 or 3, got 4"),
        ({"hidden": 1}, "hidden must be at least 2, got 1"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"residual_layers": -1}, "residual_layers must be at least 0, got -1"),
        ({"residual_hidden": 0}, "residual_hidden must be at least 1, got 0"),
        ({"embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
        ({"beta": -1}, "beta must be at least 0, got -1"),
        ({"dead_code_threshold": -1.0}, "dead_code_threshold must be at least 0"),
    ],
)
def test_bad_arguments_of_both(kind, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, r"image_size must be whole numbers of at least 1 in a sequence, got \(0, 0\)"),
        ({"image_size": (8, 8, 8)}, r"image_size must be 2 numbers, got \[8, 8, 8\]"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"channels": (0, 1)}, r"channels must be whole numbers of at least 1 in a sequence, got \(0, 1\)"),
        ({"channels": ()}, r"channels must be 1 or more numbers, got \[\]"),
        ({"beta": -1.0}, "beta must be at least 0, got -1"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
    ],
)
def test_bad_arguments_of_a_vae(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAE(**arguments)


@pytest.mark.parametrize("name", MODELS)
def test_inputs_of_other_types_are_named(name: str) -> None:
    model, x = MODELS[name](), torch.zeros(2, 1, 8, 12)
    for call in (model, model.encode, model.reconstruct):
        with pytest.raises(ValueError, match=r"x has dtype torch.uint8, expected floats in -0.5..0.5; give"):
            call(x.byte())
        with pytest.raises(ValueError, match=r"torch.float64, the weights have torch.float32; give x.to"):
            call(x.double())


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_batch_has_loss_zero(name: str) -> None:
    model = MODELS[name]().train()
    output = model(torch.zeros(0, 1, 8, 12))
    assert output.reconstruction.shape == (0, 1, 8, 12)
    assert output.loss.item() == 0
    assert not any(term.item() for term in output.terms.values())
    output.loss.backward()
    assert not any(p.grad.isnan().any() for p in model.parameters() if p.grad is not None)


def test_codes_that_do_not_fit_are_named() -> None:
    flat, deep = VQVAE(1, **SMALL), VQVAE2(1, **SMALL)
    x = torch.zeros(2, 1, 16, 16)
    for model in (flat, deep):
        with pytest.raises(ValueError, match=r"x holds 1 images of size \(16, 16\), the codes are of 2 of"):
            model.decoder_log_prob(x[:1], model.encode(x))
        with pytest.raises(ValueError, match=r"spatial is \(30, 30\), expected 2 sizes that"):
            model.code_shapes((30, 30))
        with pytest.raises(ValueError, match=r"spatial is \(16,\), expected 2 sizes that"):
            model.code_shapes((16,))
    with pytest.raises(ValueError, match=r"codes have the shapes .* top first, each below 2 times the size"):
        deep.decode_codes(deep.encode(x)[::-1])
    with pytest.raises(ValueError, match=r"downscales must be whole numbers .* in a sequence, got 4"):
        VQVAE2(1, downscales=4)
