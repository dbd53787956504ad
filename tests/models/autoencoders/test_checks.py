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
        ({"ndim": 4}, "ndim is 4; accepted: 1, 2, 3"),
        ({"hidden": 1}, "hidden is 1; accepted: an integer of at least 2"),
        ({"in_channels": 0}, "in_channels is 0; accepted: an integer of at least 1"),
        ({"residual_layers": -1}, "residual_layers is -1; accepted: an integer of at least 0"),
        ({"residual_hidden": 0}, "residual_hidden is 0; accepted: an integer of at least 1"),
        ({"embedding_dim": 0}, "embedding_dim is 0; accepted: an integer of at least 1"),
        ({"beta": -1}, "beta is -1.*; accepted: a finite number of at least 0"),
        (
            {"dead_code_threshold": -1.0},
            "dead_code_threshold is -1.*; accepted: a finite number of at least 0",
        ),
    ],
)
def test_bad_arguments_of_both(kind, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, r"image_size\[0\] is 0; accepted: an integer of at least 1"),
        ({"image_size": (8,) * 4}, r"image_size is \[8, 8, 8, 8\]; accepted: 1 to 3 integers"),
        ({"latent_dim": 0}, "latent_dim is 0; accepted: an integer of at least 1"),
        ({"channels": (0, 1)}, r"channels\[0\] is 0; accepted: an integer of at least 1"),
        ({"channels": ()}, r"channels is \[\]; accepted: 1 or more integers"),
        ({"beta": -1.0}, "beta is -1.*; accepted: a finite number of at least 0"),
        ({"in_channels": 0}, "in_channels is 0; accepted: an integer of at least 1"),
    ],
)
def test_bad_arguments_of_a_vae(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAE(**arguments)


@pytest.mark.parametrize("name", MODELS)
def test_inputs_of_other_types_are_named(name: str) -> None:
    model, x = MODELS[name](), torch.zeros(2, 1, 8, 12)
    for call in (model, model.encode, model.reconstruct):
        with pytest.raises(TypeError, match=r"x is of dtype torch.uint8; accepted: floats in -0.5..0.5"):
            call(x.byte())
        with pytest.raises(TypeError, match=r"torch.float64; accepted: that .* as x.to\(torch.float32\)"):
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
        with pytest.raises(ValueError, match=r"codes is of 2 images .*; accepted: .* of x, which holds 1"):
            model.decoder_log_prob(x[:1], model.encode(x))
        with pytest.raises(ValueError, match=r"spatial is \(30, 30\); accepted: 2 sizes that"):
            model.code_shapes((30, 30))
        with pytest.raises(ValueError, match=r"spatial is \(16,\); accepted: 2 sizes that"):
            model.code_shapes((16,))
    with pytest.raises(ValueError, match=r"codes is of the shapes .*; accepted: .* that are 1/8, 1/4"):
        deep.decode_codes(deep.encode(x)[::-1])
    with pytest.raises(ValueError, match=r"codes is of 1 levels; accepted: 2, top first"):
        deep.decode_codes(deep.encode(x)[:1])
    with pytest.raises(ValueError, match=r"codes is of the shapes \[\(2, 4\)\]; accepted: .* with 2 sizes"):
        flat.decode_codes([flat.encode(x)[0][:, 0]])
    with pytest.raises(TypeError, match=r"downscales is 4; accepted: a sequence of integers"):
        VQVAE2(1, downscales=4)
