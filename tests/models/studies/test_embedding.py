"""The embedding space: the gradient that reaches the encoder's outputs, and the cells it takes them to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from models import VQVAE
from models.studies.embedding import STEP, embedding_space, gradient_steps

pytestmark = pytest.mark.figures


def model(embedding_dim: int = 2) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(
        1, hidden=8, residual_hidden=4, embedding_dim=embedding_dim, codebook_size=9, downscale=4
    ).eval()


def test_outputs_follow_the_gradient_of_the_decoders_input(tmp_path: Path) -> None:
    vqvae, x = model(), torch.rand(20, 1, 8, 8) - 0.5
    steps = gradient_steps(vqvae, x)
    (codes,) = vqvae.encode(x)
    assert torch.equal(steps.codes, codes.flatten())
    (quantized,) = vqvae.look_up([codes])
    quantized = quantized.detach().requires_grad_()
    loss = vqvae.likelihood.loss(vqvae.decoder(quantized), x)
    (gradient,) = torch.autograd.grad(loss, quantized)
    way = steps.moved - steps.outputs
    downhill = -gradient.movedim(1, -1).flatten(0, -2)
    rate = way.norm(dim=1) / downhill.norm(dim=1)
    torch.testing.assert_close(way, downhill * rate.median(), rtol=1e-3, atol=1e-5)
    codebook = vqvae.look_up([torch.arange(9).view(-1, 1, 1)])[0].detach().flatten(1)
    distances = torch.cdist(codebook, codebook)
    neighbour = distances.fill_diagonal_(torch.inf).amin(1).median()
    assert float(way.norm(dim=1).median() / neighbour) == pytest.approx(STEP, rel=1e-3)
    assert torch.equal(steps.codes_then, torch.cdist(steps.moved, codebook).argmin(1))
    picture = embedding_space(tmp_path / "embedding.png", vqvae, steps, "what it is of")
    with Image.open(picture) as image:
        assert len(image.convert("RGB").getcolors(2**24) or []) > 50, "an empty picture"


def test_a_picture_has_two_dimensions(tmp_path: Path) -> None:
    vqvae, x = model(3), torch.rand(20, 1, 8, 8) - 0.5
    with pytest.raises(ValueError, match="embedding_dim is 3; accepted: 2"):
        embedding_space(tmp_path / "embedding.png", vqvae, gradient_steps(vqvae, x))
