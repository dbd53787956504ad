"""How a model gets its quantizer: settings written once, and models that ask for the interface alone."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_support import settings, train

from models import VAE, VQVAE, VQVAE2, evaluate, train_prior
from models.autoencoders import vqvae, vqvae2
from models.autoencoders.discrete import require_codes
from models.autoencoders.quantizer import QuantizerArguments, QuantizerSettings, make_quantizer
from models.codes.encode import encode
from models.codes.sample import decode, sample_codes
from models.codes.store import CodeStore
from models.data import DataConfig, load_data, to_float
from models.runs.config import PriorConfig, TrainConfig

STAGES, CODES = 3, 5


class StagedQuantizer(nn.Module):
    """A residual quantizer of three stages, whose indices come stages first, as some peers have them.

    It is no subclass of ours and has nothing but the interface. Like a quantizer with too many codes to count
    it may keep no counts.
    """

    def __init__(self, dim: int, counted: bool = True) -> None:
        super().__init__()
        self.codebooks = nn.Parameter(torch.randn(STAGES, CODES, dim))
        self.counted, self.updates = counted, 0
        self.last_counts: Tensor | None = None

    codebook_sizes = (CODES,) * STAGES

    def forward(self, x: Tensor, *, freeze_codebook: bool | None = None) -> tuple[Tensor, Tensor, Tensor]:
        rest, chosen = x.movedim(1, -1), []
        for codebook in self.codebooks:
            chosen.append(torch.cdist(rest.flatten(0, -2), codebook).argmin(1).view(rest.shape[:-1]))
            rest = rest - codebook[chosen[-1]]
        indices = torch.stack(chosen)  # [Q, B, *S]
        quantized = self.get_output_from_indices(indices)
        if self.counted:
            rows = indices.flatten(1)
            self.last_counts = torch.stack([torch.bincount(row, minlength=CODES) for row in rows])
        return x + (quantized - x).detach(), indices, (x - quantized).square().mean()

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        codes = [codebook[index] for codebook, index in zip(self.codebooks, indices, strict=True)]
        return torch.stack(codes).sum(0).movedim(-1, 1)

    def flatten_indices(self, indices: Tensor) -> Tensor:
        return indices.movedim(0, -1)

    def unflatten_indices(self, indices: Tensor) -> Tensor:
        return indices.movedim(-1, 0)

    def update_codebooks(self) -> None:
        self.updates += 1

    @property
    def perplexity(self) -> Tensor | None:
        return None if self.last_counts is None else torch.tensor(2.0)

    @property
    def usage(self) -> Tensor | None:
        return None if self.last_counts is None else (self.last_counts > 0).float().mean()


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(data="digits", limit=128))


@pytest.fixture(params=["counted", "uncounted"])
def staged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Models get quantizers with stages; True if these count their codes."""
    counted = request.param == "counted"
    for module in (vqvae, vqvae2):
        monkeypatch.setattr(
            module, "make_quantizer", lambda arguments: StagedQuantizer(arguments.embedding_dim, counted)
        )
    return counted


@pytest.mark.parametrize("model", ["vqvae", "vqvae2"])
def test_codes_with_stages_from_training_to_samples(tmp_path: Path, data, staged: bool, model: str) -> None:
    config = settings(tmp_path, name="staged", model=model, downscales=(2, 2), limit=128, epochs=1)
    trained = train(config, data)
    shapes = ((4, 4, STAGES),) if model == "vqvae" else ((2, 2, STAGES), (4, 4, STAGES))
    assert trained.code_shapes((8, 8)) == shapes
    assert all(quantizer.updates == 2 for quantizer in trained.level_quantizers)
    x = to_float(data.test.batch(range(5)))
    codes = trained.encode(x)
    assert [level.shape for level in codes] == [(5, *shape) for shape in shapes]
    torch.testing.assert_close(trained.decode_codes(codes), trained(x).reconstruction)
    store = encode(trained, data, tmp_path / "codes", source=str(config.layout.model))
    assert store.description.codebook_sizes == ((CODES,) * STAGES,) * len(shapes)
    stored = CodeStore(tmp_path / "codes")
    assert stored.description == store.description
    for level, read in zip(codes, stored.test.batch(range(5)), strict=True):
        assert torch.equal(read, level)
    prior_config = PriorConfig(
        runs=str(tmp_path), codes=str(store.folder), width=8, layers=1, heads=2, epochs=1, progress=False,
        accelerator="cpu")  # fmt: skip
    priors = train_prior(prior_config, store)
    figures = evaluate(trained, data, priors=priors)
    number = sum(torch.tensor(shape).prod() for shape in shapes)
    uniform = float(number) * torch.tensor(float(CODES)).log2() / 64
    assert figures["bits_codes_uniform"] == pytest.approx(float(uniform), rel=1e-6)
    assert figures["bits_codes_prior"] < figures["bits_codes_uniform"]
    assert any(name.startswith("usage") for name in figures)
    samples = sample_codes(priors, shapes, torch.arange(4))
    assert decode(trained, samples).shape == (4, 1, 8, 8)


def test_a_prior_of_two_axes_is_refused_for_codes_with_stages(tmp_path: Path, data, staged: bool) -> None:
    trained = train(settings(tmp_path, name="staged", limit=128, steps=1), data)
    store = encode(trained, data, tmp_path / "codes")
    config = PriorConfig(runs=str(tmp_path), codes=str(store.folder), prior="pixelcnn", progress=False)
    with pytest.raises(ValueError, match=r"prior is 'pixelcnn'; accepted for code maps of shape \(4, 4, 3\)"):
        train_prior(config, store)


def test_settings_of_a_run_are_those_of_the_quantizer() -> None:
    names = {field.name for field in fields(QuantizerSettings)}
    assert names <= {field.name for field in fields(TrainConfig)}
    config = TrainConfig(codebook_size=7, decay=0.5)
    assert config.quantizer_settings() == {name: getattr(config, name) for name in names}


@pytest.mark.parametrize("kind", [VQVAE, VQVAE2])
def test_every_argument_is_in_the_configuration_and_no_other_is_taken(kind: type[VQVAE | VQVAE2]) -> None:
    model = kind(1, codebook_size=7, eps=1e-3)
    assert QuantizerArguments().as_dict().keys() <= model.config.keys()
    assert (model.config["codebook_size"], model.config["eps"], model.config["decay"]) == (7, 1e-3, 0.99)
    with pytest.raises(TypeError, match=f"{kind.__name__} got an unexpected keyword argument 'codebooks'"):
        kind(1, codebooks=2)


def test_codebooks_move_only_where_something_waits() -> None:
    x = torch.randn(8, 4, 3, 3)
    for manual in (False, True):
        quantizer = make_quantizer(
            QuantizerArguments(embedding_dim=4, codebook_size=6, manual_ema_update=manual)
        )
        quantizer(x)
        after_forward = quantizer.codebook.clone()
        quantizer.update_codebooks()
        assert torch.equal(quantizer.codebook, after_forward) == (not manual)


def test_models_with_codes_are_told_from_others() -> None:
    model = VQVAE(1)
    assert require_codes(model) is model
    with pytest.raises(ValueError, match="model is a VAE, which has no codes; accepted: a VQVAE or a VQVAE2"):
        require_codes(VAE(1, 8))
