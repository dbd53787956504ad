"""Evaluate, sample, and the command line from training to a picture of samples."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_support import tiny_hierarchy

from models import VAE, VQVAE2, TransformerPrior
from models.cli import main
from models.codes.sample import decode, sample_codes
from models.data import DataConfig, ImageSplit, load_data, to_float
from models.evaluation.evaluate import evaluate
from models.evaluation.metrics import ReconstructionMeter, level_names, ssim
from models.priors.hierarchy import code_log_prob


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(data="digits", limit=150))


@pytest.fixture(scope="module")
def model() -> VQVAE2:
    return tiny_hierarchy()


def test_bits_per_dimension_of_codes(data, model: VQVAE2) -> None:
    """Every term against its definition, and the uniform prior against log K for each code."""
    torch.manual_seed(0)
    shapes = model.code_shapes(data.size)
    priors = [
        TransformerPrior(16, 8, shape=shapes[0], layers=1, heads=2, num_classes=10),
        TransformerPrior(16, 8, shape=shapes[1], layers=1, heads=2, num_classes=10, upper_codebook_size=16),
    ]
    found = evaluate(model, data, priors=priors, batch_size=64)
    x, labels = to_float(data.test.batch(range(150))), data.test.labels
    codes = model.encode(x)
    scale = 150 * 64 * math.log(2)
    assert found["bits_codes_uniform"] == pytest.approx(150 * (4 + 16) * math.log(16) / scale)
    decoder = -model.decoder_log_prob(x, codes).sum().item() / scale
    prior = -code_log_prob(priors, codes, labels).sum().item() / scale
    assert found["bits_decoder"] == pytest.approx(decoder, rel=1e-5)
    assert found["bits_codes_prior"] == pytest.approx(prior, rel=1e-5)
    assert found["bits_per_dim"] == pytest.approx(decoder + prior, rel=1e-5)
    assert found["bits_per_dim_uniform"] == pytest.approx(decoder + found["bits_codes_uniform"], rel=1e-5)
    with pytest.raises(ValueError, match="priors is of 1 levels; accepted: one for each of 2"):
        evaluate(model, data, priors=priors[:1])


def test_bits_per_dimension_of_a_vae(data) -> None:
    torch.manual_seed(0)
    model = VAE(1, 8, latent_dim=3, channels=(4, 4, 4, 4), likelihood="categorical")
    found = evaluate(model, data)
    assert found["bits_per_dim"] == pytest.approx(found["bits_decoder"] + found["bits_kl"])
    assert found == evaluate(model, data), "the latents' noise is seeded"
    assert "perplexity" not in found
    assert "no feature network was given" in str(found["rfid"])


def test_reconstruction_figures_against_their_definitions(data) -> None:
    x = to_float(data.test.batch(range(20)))
    y = (x + 0.1 * torch.randn(x.shape)).clamp(-0.5, 0.5)
    codes = torch.tensor([0, 0, 1, 3]).view(1, 2, 2).repeat(20, 1, 1)
    meter = ReconstructionMeter([(4,)])
    meter.update(x[:7], y[:7], [codes[:7]])
    meter.update(x[7:], y[7:], [codes[7:]])
    found = meter.compute(variance=0.25)
    mse = (x - y).square().mean().item()
    assert found["mse"] == pytest.approx(mse)
    assert found["nmse"] == pytest.approx(mse / 0.25)
    assert found["psnr"] == pytest.approx(10 * math.log10(1 / mse))
    assert found["perplexity"] == pytest.approx(math.exp(1.5 * math.log(2)), rel=1e-5)
    assert found["usage"] == 0.75
    assert ssim(x, x).min() == pytest.approx(1.0, abs=1e-4)
    assert ssim(y, x).mean() < 0.99
    # Two constant images a and b in 0..1 have (2 a b + c) / (a^2 + b^2 + c), c = 0.01^2, for any window.
    for size in (8, 32):
        light, dark = torch.full((1, 1, size, size), 0.9 - 0.5), torch.full((1, 1, size, size), 0.3 - 0.5)
        expected = (2 * 0.9 * 0.3 + 1e-4) / (0.9**2 + 0.3**2 + 1e-4)
        assert ssim(light, dark).item() == pytest.approx(expected, rel=1e-3)
    assert level_names(3) == ["_top", "_middle1", "_bottom"]


def test_samples_follow_the_priors(model: VQVAE2) -> None:
    torch.manual_seed(0)
    priors = [
        TransformerPrior(16, 8, shape=(2, 2), layers=1, heads=2),
        TransformerPrior(16, 8, shape=(4, 4), layers=1, heads=2, upper_codebook_size=16),
    ]
    labels = torch.zeros(5, dtype=torch.int64)
    draws = [
        sample_codes(priors, [(2, 2), (4, 4)], labels, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert [tuple(level.shape) for level in draws[0]] == [(5, 2, 2), (5, 4, 4)]
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not torch.equal(draws[0][1], draws[2][1])
    torch.testing.assert_close(decode(model, draws[0], batch_size=2), decode(model, draws[0]))


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of images each time some are decoded."""
    counts: list[int] = []
    original = ImageSplit._decode

    def counting(self: ImageSplit, rows: Iterable[int]) -> torch.Tensor:
        counts.append(len(list(rows)))
        return original(self, rows)

    monkeypatch.setattr(ImageSplit, "_decode", counting)
    monkeypatch.setattr(ImageSplit, "_check", lambda _: counts.append(10**6))
    return counts


def test_command_line_from_training_to_samples(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["--no-progress", "--accelerator", "cpu", "--batch-size", "64", "--lr", "3e-3"]
    (tmp_path / "tiny.yaml").write_text(
        "hidden: 8\nresidual_hidden: 4\nembedding_dim: 4\ncodebook_size: 32\n"
    )
    train = ["train", "--config", "tiny.yaml", "--name", "digits", "--codebook-size", "16", "--limit", "256"]
    train += ["--model", "vqvae2", "--downscales", "2,2", "--epochs", "2", *quick]
    assert main(train) == 0
    assert main(train) == 2, "an earlier run is not overwritten"
    assert "--resume" in capsys.readouterr().err
    decoded = count_decoded(monkeypatch)
    assert main(["reconstruct", "runs/digits", "--count", "8", "--out", "eight"]) == 0
    assert decoded == [8], "no image but those shown"
    decoded.clear()
    assert main(["encode", "runs/digits", "--batch-size", "100"]) == 0
    assert sum(decoded) == 256 + 256 + 179 + 256, "a sample to see a collapse, then every image once"
    assert max(decoded) == 100, "one batch at a time"
    for flags, message in (
        (
            ["encode", "runs/digits", "--shard-size", "0"],
            "shard_size is 0; accepted: an integer of at least 1",
        ),
        (["encode", "runs/digits", "--limit", "0"], "limit is 0; accepted: an integer of at least 1"),
        (["encode", "runs/digits", "--limit", "-3"], "limit is -3; accepted: an integer of at least 1"),
        (["encode", "runs/digits", "--limit", "9"], "holds codes with limit 256, now it is 9"),
        (["reconstruct", "runs/digits", "--count", "0"], "count is 0; accepted: an integer of at least 1"),
    ):
        assert main(flags) == 2
        assert message in capsys.readouterr().err
    prior = [
        "train-prior",
        "--name",
        "prior",
        "--codes",
        "runs/digits/codes",
        "--epochs",
        "1",
        "--width",
        "8",
    ]
    assert main([*prior, "--heads", "2", *quick]) == 0
    assert main(["evaluate", "runs/digits", "--prior", "runs/prior"]) == 0
    figures = json.loads(Path("runs/digits/evaluation-test.json").read_text())
    assert {"mse", "ssim", "perplexity_top", "usage_bottom", "bits_per_dim", "rfid"} <= set(figures)
    assert "| bits_per_dim |" in capsys.readouterr().out
    assert main([*train, "--name", "other", "--seed", "1"]) == 0
    assert main(["evaluate", "runs/other", "--prior", "runs/prior"]) == 2
    assert "was trained on codes of runs/digits/model, not of runs/other" in capsys.readouterr().err
    assert main(["sample", "runs/prior", "--model", "runs/other"]) == 2
    assert "was trained on codes of runs/digits/model" in capsys.readouterr().err
    assert main(["reconstruct", "runs/digits", "--images", "--split", "validation", "--limit", "70"]) == 0
    assert len(list(Path("runs/digits/reconstruct-validation/images").glob("*.png"))) == 70
    sample = [
        "sample",
        "runs/prior",
        "--classes",
        "3,7",
        "--count",
        "4",
        "--top-k",
        "5",
        "--temperature",
        "0.9",
    ]
    assert main(sample) == 0
    saved = np.load("runs/prior/samples/codes.npz")
    assert saved["labels"].tolist() == [3] * 4 + [7] * 4
    assert saved["level0"].shape == (8, 2, 2)
    assert saved["level1"].shape == (8, 4, 4)
    assert Path("runs/prior/samples/samples.png").stat().st_size > 500
    Path("runs/prior/levels.txt").touch()
    assert main(["sample", "runs/prior", "--classes", "3", "--device", "teapot"]) == 2
    assert "device is 'teapot', which cannot be used here" in capsys.readouterr().err
    (tmp_path / "junk.pt").write_bytes(b"junk")
    assert main(["evaluate", "runs/digits", "--fid-weights", str(tmp_path / "junk.pt")]) == 2
    assert "accepted: a TorchScript file" in capsys.readouterr().err
    assert main(["sample", "runs/prior", "--classes", "eleven"]) == 2
    assert "unknown class 'eleven'; accepted: 0, 1, 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "/no/such/folder"], "data is /no/such/folder, which does not exist"),
        (["train", "--epochs", "many"], "epochs is 'many'; accepted: a whole number"),
        (["train", "--epochs", "0"], "epochs is 0; accepted: an integer of at least 1"),
        (
            ["train", "--config", "unknown"],
            "config is 'unknown', which does not exist; accepted: a YAML file or cifar10, demo",
        ),
        (["train", "--model", "gan"], "model is 'gan'; accepted: 'vqvae', 'vqvae2', 'vae'"),
        (["train", "--downscale", "16"], "the size of digits is 8x8; accepted: a multiple of 16"),
        (["encode", "runs/none"], "runs/none/config.yaml does not exist"),
        (["train-prior"], "codes is not given"),
        (["train-prior", "--codes", "/none"], "/none holds no codes"),
        (["sample", "runs/none"], "runs/none holds no priors"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path, monkeypatch, capsys, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists(), "nothing is written before the input was checked"


def test_unknown_settings_in_a_file_are_named(tmp_path, capsys) -> None:
    (tmp_path / "bad.yaml").write_text("codebok_size: 3\n")
    assert main(["train", "--config", str(tmp_path / "bad.yaml")]) == 2
    assert "unknown setting 'codebok_size'; did you mean 'codebook_size'?" in capsys.readouterr().err
    for name, message in (
        ("foo", "'foo'; accepted: "),
        ("qqqq", "'qqqq'; accepted: another one that --help lists"),
    ):
        (tmp_path / "bad.yaml").write_text(f"{name}: 3\n")
        assert main(["train", "--config", str(tmp_path / "bad.yaml")]) == 2
        said = capsys.readouterr().err
        assert f"unknown setting {message}" in said
        assert said.endswith("another one that --help lists\n")


@pytest.mark.parametrize(
    "command",
    ["train", "train-prior", "encode", "reconstruct", "sample", "evaluate", "reproduce", "convert"]
    + [f"reproduce {name}" for name in ("kaokore-vqvae2", "cifar-vae-vqvae", "celeba-sweep")]
    + [f"reproduce {name}" for name in ("mnist-transformer", "likelihood")],
)
def test_help(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["transformer", "pixelcnn", "pixelsnail"])
def test_priors_are_built_for_every_level(kind: str, data, model: VQVAE2) -> None:
    from models.codes.description import CodeDescription
    from models.runs.build import build_priors
    from models.runs.config import PriorConfig

    shapes = model.code_shapes(data.size)
    description = CodeDescription(shapes, model.codebook_sizes, data.class_names, "digits", "", "")
    priors = build_priors(PriorConfig(prior=kind, width=16, layers=2, heads=2), description)
    assert [prior.upper_codebook_size for prior in priors] == [None, 16]
    codes = model.encode(to_float(data.test.batch(range(3))))
    assert code_log_prob(priors, codes, data.test.labels[:3]).shape == (3,)
    unconditional = build_priors(PriorConfig(prior=kind, width=16, heads=2, conditional=False), description)
    assert {prior.num_classes for prior in unconditional} == {None}
    with pytest.raises(ValueError, match="prior is 'gpt'; accepted: 'transformer', 'pixelcnn', 'pixelsnail'"):
        build_priors(PriorConfig(prior="gpt"), description)


def test_samples_of_classes_of_two_columns_are_chosen_and_measured(tmp_path: Path, capsys) -> None:
    """From images with two columns of labels to samples that were ranked, rejected, judged and compared."""
    import datasets

    generator = np.random.default_rng(0)
    kinds = [(light, wide) for light in (0, 1) for wide in (0, 1)] * 13 + [(0, 1)] * 20
    images = []
    for light, wide in kinds:
        pixels = generator.integers(0, 60, (8, 8), dtype=np.uint8)
        pixels[2:6, 1 if wide else 3 : 7 if wide else 5] += np.uint8(180 if light else 90)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    columns = {
        "image": datasets.Image(),
        "shade": datasets.ClassLabel(names=["dark", "light"]),
        "form": datasets.ClassLabel(names=["narrow", "wide"]),
    }
    rows = {"image": images, "shade": [kind[0] for kind in kinds], "form": [kind[1] for kind in kinds]}
    table = datasets.Dataset.from_dict(rows, datasets.Features(columns))
    table.to_parquet(tmp_path / "data" / "train.parquet")
    runs = ["--runs", str(tmp_path), "--no-progress"]
    quick = "--hidden 8 --residual-hidden 4 --embedding-dim 4 --codebook-size 16 --epochs 2 --batch-size 16"
    flags = [
        "--model",
        "vqvae2",
        "--downscales",
        "2,2",
        "--kmeans-init",
        "--level-dropout",
        "0,0.3",
        "--l1",
        "1",
    ]
    data = ["--data", str(tmp_path / "data"), "--label-column", "shade,form"]
    assert main(["train", "--name", "run", *data, *flags, *quick.split(), "--shift", "0.1", *runs]) == 0
    assert main(["encode", str(tmp_path / "run"), "--copies", "2"]) == 0
    prior = [
        "--width",
        "8",
        "--layers",
        "1",
        "--heads",
        "2",
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--label-dropout",
        "0.3",
    ]
    codes = ["--codes", str(tmp_path / "run" / "codes")]
    assert main(["train-prior", "--name", "top", "--level", "0", *codes, *prior, *runs]) == 0
    above = ["--level", "1", "--above", str(tmp_path / "top")]
    assert main(["train-prior", "--name", "prior", *above, *codes, *prior, *runs]) == 0
    asked = "--classes dark,light+wide --count 3 --temperature 0.9,0.5 --top-p none,0.9 --guidance 2,1.2"
    chosen = "--best-of 2 --reject 2 --two-sample --neighbours --judge-model cnn"
    arguments = [*asked.split(), *chosen.split(), "--judge", str(tmp_path / "data")]
    assert main(["sample", str(tmp_path / "prior"), *arguments]) == 0
    folder = tmp_path / "prior" / "samples"
    figures = json.loads((folder / "figures.json").read_text())
    assert set(figures) == {
        *("plain", "ranked", "kept", "real test images", "squared error to the nearest training image")
    }
    assert set(figures["kept"]["judge"]) == {"shade", "form"}
    assert set(figures["kept"]["judge"]["shade"]) == {"all", "dark", "light"}
    assert 0 <= figures["plain"]["two_sample"] <= 1
    for name in ("neighbours", "samples", "samples-plain", "samples-ranked"):
        assert (folder / f"{name}.png").is_file()
    with np.load(folder / "codes.npz") as stored:
        names = sorted({"dark+narrow", "dark+wide", "light+narrow", "light+wide"})
        assert [names[label] for label in stored["labels"]] == [
            *("dark+narrow", "dark+wide", "dark+narrow", *["light+wide"] * 3)
        ]
        assert stored["level1"].shape == (6, 4, 4)
    of_dark = ["--classes", "dark", "--count", "4", "--mix", "training", "--out", str(tmp_path / "mixed")]
    assert main(["sample", str(tmp_path / "prior"), *of_dark]) == 0
    with np.load(tmp_path / "mixed" / "codes.npz") as stored:
        assert sorted(stored["labels"]) == [0, 1, 1, 1], "a quarter of the dark ones are narrow"
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "prior"), "--classes", "dark,blue"]) == 2
    assert "unknown class 'blue'; accepted: dark+narrow" in capsys.readouterr().err
    assert main(["sample", str(tmp_path / "prior"), "--temperature", "0.9,0.5,1"]) == 2
    assert "temperature is 0.9,0.5,1.0; accepted: one value, or one for each of 2" in capsys.readouterr().err
