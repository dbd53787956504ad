"""VAE, VQVAE and VQVAE2: shapes, gradients, codes, and what the papers' equations say about the loss."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models import VAE, VQVAE, VQVAE2, load_pretrained
from models.autoencoders.blocks import Decoder, Encoder, ResidualBlock
from models.pretrained import Pretrained

SMALL = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 6, "codebook_size": 11}


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
@pytest.mark.parametrize("downscale", [2, 4, 8])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_vqvae_shapes_and_codes(ndim: int, downscale: int, codebook: str) -> None:
    torch.manual_seed(0)
    model = VQVAE(2, ndim=ndim, downscale=downscale, codebook=codebook, **SMALL)
    space = (16, 8, 8)[:ndim]
    x = torch.rand(3, 2, *space) - 0.5
    output = model(x)
    output.loss.backward()
    assert output.reconstruction.shape == x.shape
    assert output.codes[0].shape == (3, *model.code_shapes(space)[0])
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    model.eval()
    codes = model.encode(x)
    torch.testing.assert_close(model.decode_codes(codes), model(x).reconstruction)
    torch.testing.assert_close(model.reconstruct(x), model(x).reconstruction)


@pytest.mark.parametrize("downscales", [(4, 2), (2, 2), (2, 2, 2), (4, 2, 2)], ids=str)
def test_vqvae2_levels(downscales: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = VQVAE2(3, downscales=downscales, **SMALL)
    x = torch.rand(2, 3, 16, 32) - 0.5
    output = model(x)
    output.loss.backward()
    assert [tuple(level.shape[1:]) for level in output.codes] == list(model.code_shapes((16, 32)))
    assert output.codes[0].numel() < output.codes[-1].numel(), "codes must come top first"
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    torch.testing.assert_close(model.decode_codes(model.encode(x)), model(x).reconstruction)


def test_vqvae2_lower_codes_depend_on_upper_ones() -> None:
    torch.manual_seed(0)
    model = VQVAE2(1, downscales=(2, 2), **SMALL).eval()
    x = torch.rand(4, 1, 16, 16) - 0.5
    before = model.encode(x)
    top = model.level_quantizers[0]
    top.codebook = top.codebook.flip(0) * 50
    after = model.encode(x)
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("likelihood", ["mse", "gaussian", "logistic", "categorical"])
@pytest.mark.parametrize("size", [8, 28, (12, 20), 64], ids=str)
def test_vae_shapes(size: int | tuple[int, int], likelihood: str) -> None:
    model = VAE(2, size, latent_dim=5, channels=(4, 4, 6, 8), likelihood=likelihood)
    space = (size, size) if isinstance(size, int) else size
    x = torch.rand(2, 2, *space) - 0.5
    output = model(x)
    output.loss.backward()
    assert output.reconstruction.shape == model.reconstruct(x).shape == x.shape
    assert all(p.grad is not None for p in model.parameters())
    assert [type(m).__name__ for m in model.encoder].count("Conv2d") == 4
    assert [type(m).__name__ for m in model.decoder].count("ConvTranspose2d") == 4


def test_vae_loss_is_the_negative_elbo_per_dimension() -> None:
    torch.manual_seed(0)
    model = VAE(1, 8, latent_dim=3, channels=(4, 4, 4, 4), likelihood="logistic")
    x = torch.rand(5, 1, 8, 8) - 0.5
    torch.manual_seed(1)
    loss = model(x).loss
    torch.manual_seed(1)
    log_likelihood, negative_kl = model.elbo(x)
    torch.testing.assert_close(loss, -(log_likelihood + negative_kl).mean() / 64)
    mean, log_variance = model.encode(x)
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    truth = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(-negative_kl, truth)


@pytest.mark.parametrize(("codebook", "alpha"), [("ema", 3.0), ("gradient", 3.0)])
def test_loss_weights_are_where_the_paper_puts_them(codebook: str, alpha: float) -> None:
    """beta moves the encoder only, alpha the codebook only (a peer has them swapped)."""
    torch.manual_seed(0)
    grads: dict[float, tuple[torch.Tensor, torch.Tensor | None]] = {}
    for beta in (0.25, 0.75):
        torch.manual_seed(0)
        model = VQVAE(1, codebook=codebook, alpha=alpha, beta=beta, **SMALL)
        x = torch.rand(4, 1, 8, 8) - 0.5
        z = model.to_embedding(model.encoder(x)).detach().requires_grad_()
        quantized, _, loss = model.quantizer(z)
        error = F.mse_loss(z, quantized.detach()).item()
        expected = (beta + (alpha if codebook == "gradient" else 0.0)) * error
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        loss.backward()
        grads[beta] = (z.grad, model.quantizer._codebook.embed.grad)
    torch.testing.assert_close(grads[0.75][0], 3 * grads[0.25][0])
    if codebook == "gradient":
        torch.testing.assert_close(grads[0.75][1], grads[0.25][1])


def test_residual_block_keeps_its_input_on_the_skip() -> None:
    """An in-place ReLU at the head of the block would clip what the skip carries."""
    block = ResidualBlock(4, 4, ndim=2)
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 4, 5, 5)
    before = x.clone()
    assert torch.equal(block(x), before)
    assert torch.equal(x, before)


def test_accumulated_batches_update_the_codebook_once() -> None:
    torch.manual_seed(0)
    model = VQVAE(1, manual_ema_update=True, **SMALL)
    before = model.quantizer.codebook.clone()
    for _ in range(2):
        model(torch.rand(2, 1, 8, 8) - 0.5)
    assert torch.equal(model.quantizer.codebook, before)
    model.update_codebooks()
    assert not torch.equal(model.quantizer.codebook, before)


@pytest.mark.parametrize("upscale", [2, 4, 8])
def test_encoder_and_decoder_have_one_convolution_a_halving(upscale: int) -> None:
    encoder = Encoder(3, 8, 2, 4, upscale)
    decoder = Decoder(5, 3, 8, 2, 4, upscale)
    assert len(encoder.down) == len(decoder.up) == {2: 1, 4: 2, 8: 3}[upscale]
    assert decoder(encoder.residual(torch.zeros(1, 8, 2, 2))[:, :5]).shape == (1, 3, 2 * upscale, 2 * upscale)


MODELS = {
    "vae": lambda: VAE(1, (8, 12), latent_dim=3, channels=(4, 4, 4, 4)),
    "vqvae": lambda: VQVAE(1, downscale=2, likelihood="gaussian", variance=0.3, **SMALL),
    "vqvae2": lambda: VQVAE2(1, downscales=(2, 2), codebook="gradient", **SMALL),
}


@pytest.mark.parametrize("name", MODELS)
def test_save_and_load(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    model: Pretrained = MODELS[name]()
    x = torch.rand(2, 1, 8, 12) - 0.5
    model(x)
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert type(load_pretrained(tmp_path)) is type(model)
    assert loaded.config == model.config
    assert torch.equal(loaded.reconstruct(x), model.reconstruct(x))


def test_loading_says_what_does_not_fit(tmp_path) -> None:
    VQVAE(1, **SMALL).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="class is 'VQVAE'; accepted: VAE"):
        VAE.from_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"embedding_dim": 6', '"embedding_dim": 5')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"to_embedding.weight is \(6, 8, 1, 1\); accepted: \(5, 8, 1, 1\)"):
        load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VQVAE(1, downscale=3), "downscale is 3; accepted: 2, 4, 8"),
        (lambda: VQVAE(1, codebook="sgd"), "codebook is 'sgd'; accepted: 'ema', 'gradient'"),
        (lambda: VQVAE(1, likelihood="l1"), "likelihood is 'l1'; accepted: 'mse', 'gaussian'"),
        (lambda: VQVAE2(1, downscales=(4,)), r"downscales is \[4\]; accepted: 2 or more"),
        (lambda: VQVAE(3)(torch.zeros(1, 1, 8, 8)), r"shape \(1, 1, 8, 8\); accepted: \[B, 3"),
        (lambda: VQVAE(3)(torch.zeros(1, 3, 8, 10)), "sizes that the model's downscale of 4 divides"),
        (lambda: VAE(3, 8)(torch.zeros(1, 3, 8, 9)), r"accepted: \[B, 3, 8, 8\]"),
    ],
)
def test_bad_arguments(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_importing_models_loads_nothing_heavy() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import models; models.VQVAE; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "heavy = {'lightning', 'datasets', 'torchmetrics', 'matplotlib', 'sklearn', 'PIL', 'yaml'}; "
        "print(sorted(new & heavy))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", [VQVAE, VQVAE2])
def test_encoding_learns_nothing_even_in_train_mode(kind: type[VQVAE | VQVAE2]) -> None:
    model = kind(1, hidden=8, residual_hidden=4, embedding_dim=4, codebook_size=8, kmeans_init=False).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(4, 1, 32, 32) - 0.5
    model.encode(x)
    model.reconstruct(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(x)
    assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_levels_may_have_codebooks_of_their_own_sizes(tmp_path: Path) -> None:
    sizes = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 4}
    model = VQVAE2(1, downscales=(2, 2), level_codebook_sizes=(7, 5), **sizes).eval()
    assert model.codebook_sizes == ((7,), (5,))
    x = torch.rand(3, 1, 8, 8) - 0.5
    top, bottom = model.encode(x)
    assert int(top.max()) < 7
    assert int(bottom.max()) < 5
    model.save_pretrained(tmp_path)
    again = VQVAE2.from_pretrained(tmp_path)
    assert again.codebook_sizes == model.codebook_sizes
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))
    with pytest.raises(ValueError, match="level_codebook_sizes"):
        VQVAE2(1, downscales=(2, 2), level_codebook_sizes=(7, 5, 3), **sizes)
    with pytest.raises(ValueError, match="level_codebook_sizes"):
        VQVAE2(1, downscales=(2, 2), level_codebook_sizes=(7,), **sizes)
