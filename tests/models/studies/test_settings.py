"""What the runs of each study differ in, what they are measured on, and how their samples are drawn."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from data_support import kaokore
from studies_support import CASES, SMALLEST

import models.codes.sample as sampling
import models.evaluation.evaluate as evaluation
from models import VQVAE
from models.data import DataConfig, load_data, some_rows, to_float
from models.studies.catalogue import list_studies
from models.studies.figures import code_vectors, image_vectors
from models.studies.runner import Runner, StudyOptions


@dataclass
class Spied:
    """What a study asked for, in order."""

    trained: list[Any] = field(default_factory=list)  # settings of models
    priors: list[Any] = field(default_factory=list)  # settings of priors
    splits: list[str] = field(default_factory=list)  # that were evaluated
    samples: list[tuple[list[int], dict[str, Any]]] = field(default_factory=list)  # labels, filters


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Spied:
    """Run the study at its smallest and without its figures."""
    import models.training.autoencoder as autoencoder
    import models.training.prior as prior

    module = import_module("models.studies." + name.replace("-", "_"))
    steps = {"steps": 5} if name == "celeba-sweep" else {}
    monkeypatch.setattr(module, "SETTINGS", {"small": module.SETTINGS["small"] | SMALLEST | steps})
    for attribute, value in CASES[name][0].items():
        monkeypatch.setattr(module, attribute, value)
    for figure in ("save_curves", "tsne_by_label", "stacked_bars", "compare_reconstructions"):
        monkeypatch.setattr(module, figure, lambda *a, **k: None, raising=False)
    spied = Spied()

    def spy(place: Any, attribute: str, see: Any) -> None:
        original = getattr(place, attribute)
        monkeypatch.setattr(place, attribute, lambda *a, **k: see(*a, **k) or original(*a, **k))

    spy(autoencoder, "train", lambda config, *a, **k: spied.trained.append(config))
    spy(prior, "train_prior", lambda config, *a, **k: spied.priors.append(config))
    spy(evaluation, "evaluate", lambda *a, **k: spied.splits.append(k.get("split", "test")))
    spy(sampling, "sample_codes", lambda *a, **k: spied.samples.append((a[2].tolist(), k)))
    seeds = {"seeds": 2} if "seeds" in list_studies()[name].options else {}
    list_studies()[name].load()(
        StudyOptions(runs=str(folder), limit=150, progress=False, accelerator="cpu", **seeds, **options)
    )
    return spied


def values(configs: list[Any], *settings: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(config, setting) for setting in settings) for config in configs]


def read_table(folder: Path, study: str, name: str) -> list[dict[str, str]]:
    with open(folder / f"reproduce-{study}-small" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_kaokore_trains_each_model_with_each_seed(tmp_path: Path, monkeypatch) -> None:
    spied = run("kaokore-vqvae2", tmp_path, monkeypatch, epochs=1)
    runs = [("vqvae", 0), ("vqvae", 1), ("vqvae2", 0), ("vqvae2", 1)]
    assert values(spied.trained, "model", "seed") == runs
    assert spied.splits == ["test"] * 4


def test_cifar_trains_each_model_with_each_batch_size(tmp_path: Path, monkeypatch) -> None:
    """The VAE with the ELBO as its loss, the VQ-VAE with the weight of the paper."""
    spied = run("cifar-vae-vqvae", tmp_path, monkeypatch, epochs=1)
    assert values(spied.trained, "model", "batch_size", "likelihood", "beta") == [
        ("vae", 32, "gaussian", 1.0),
        ("vae", 64, "gaussian", 1.0),
        ("vqvae", 32, "mse", 0.25),
        ("vqvae", 64, "mse", 0.25),
    ]
    assert spied.splits == ["test"] * 4


def test_the_transformer_study_compares_priors_and_samples_as_published(tmp_path: Path, monkeypatch) -> None:
    """Of each variant an unconditional and a conditional prior; temperature 2 with top-k 8, then plain."""
    spied = run("mnist-transformer", tmp_path, monkeypatch, epochs=1)
    weights = [(2.0, 1.0, None), (2.0, 0.2, 1.0), (2.0, 1.0, None)]  # the second as published
    assert values(spied.trained, "alpha", "beta", "variance") == weights
    assert values(spied.trained, "codebook", "downscale") == [("gradient", size) for size in (2, 2, 4)]
    assert values(spied.priors, "conditional") == [(False,), (True,)] * 3
    assert spied.splits == ["test"] * 6
    assert [(k["temperature"], k["top_k"]) for _, k in spied.samples] == [(2.0, 8), (1.0, None)] * 6
    classes = sorted(20 * list(range(10)))
    assert all(labels == classes for labels, _ in spied.samples)


def test_epochs_that_are_given_are_those_of_all_priors(tmp_path: Path, monkeypatch) -> None:
    """So none is trained longer than the others."""
    module = import_module("models.studies.mnist_transformer")
    monkeypatch.setattr(module, "LONGER", {"small": {"epochs": 3}})
    spied = run("mnist-transformer", tmp_path / "given", monkeypatch, epochs=1)
    assert values(spied.priors, "epochs") == [(1,)] * 6
    spied = run("mnist-transformer", tmp_path / "not", monkeypatch)
    assert values(spied.priors, "epochs") == [(1,)] * 2 + [(3,)] * 2 + [(1,)] * 4
    assert len(spied.trained) == 3, "the priors of both lengths are of one model"


def test_the_likelihood_study_adds_up_the_bits_of_trained_priors(tmp_path: Path, monkeypatch) -> None:
    """And a number of epochs that is given is that of models and priors alike."""
    spied = run("likelihood", tmp_path, monkeypatch, epochs=3)
    assert values(spied.trained, "model", "decoder", "likelihood", "beta") == [
        ("vae", "independent", "gaussian", 1.0),
        ("vqvae", "independent", "gaussian", 0.25),
        ("vae", "independent", "logistic", 1.0),
        ("vae", "autoregressive", "logistic", 1.0),
        ("vqvae", "independent", "logistic", 0.25),
        ("vqvae", "autoregressive", "logistic", 0.25),
        ("vqvae", "independent", "logistic", 0.25),  # of few code maps
        ("vqvae", "independent", "mse", 0.25),  # of two dimensions
    ]
    assert values(spied.trained, "epochs") == [(3,)] * 8
    assert values(spied.priors, "conditional", "epochs") == [(False, 3)] * 2
    assert spied.splits == ["test"] * 6
    vae, vqvae = read_table(tmp_path, "likelihood", "bits")
    for row in (vae, vqvae):
        assert float(row["bits/dim"]) == pytest.approx(float(row["decoder"]) + float(row["KL or codes"]))
    assert vae["bits/dim, uniform codes"] == ""
    assert vqvae["bits/dim"] != vqvae["bits/dim, uniform codes"], "a trained prior is not uniform"
    for row in read_table(tmp_path, "likelihood", "bound"):
        assert float(row["log p(x | z_q) p(z_q)"]) < float(row["log p(x)"])
        assert int(row["code maps"]) == 3**4


def test_the_sweep_ranks_by_validation_and_trains_its_best_setting_longer(
    tmp_path: Path, monkeypatch
) -> None:
    spied = run("celeba-sweep", tmp_path, monkeypatch)
    first_image, whole = ["validation"] * 2, ["validation"] * 2  # of each case, before all training and after
    assert spied.splits == [*first_image, *whole, "test"]
    first, second = read_table(tmp_path, "celeba-sweep", "sweep")
    (best,) = read_table(tmp_path, "celeba-sweep", "best")
    assert float(first["mse"]) < float(second["mse"])
    assert best["lr"] == first["lr"] != second["lr"]
    assert values(spied.trained, "lr", "steps") == [(1e-2, 5), (1e-3, 5), (float(first["lr"]), 6)]


@pytest.mark.parametrize("name", ["mnist-transformer", "kaokore-vqvae2"])
def test_a_seed_is_that_of_models_priors_and_samples_in_a_folder_of_its_own(
    name: str, tmp_path: Path, monkeypatch
) -> None:
    spied = run(name, tmp_path, monkeypatch, epochs=1, seed=3)
    several = name == "kaokore-vqvae2"
    assert {config.seed for config in spied.trained} == ({3, 4} if several else {3})
    assert {config.seed for config in spied.priors} == {3}
    assert {filters["generator"].initial_seed() for _, filters in spied.samples} == {3}
    assert [folder.name for folder in tmp_path.iterdir()] == [f"reproduce-{name}-small-seed3"]


def test_a_study_takes_the_label_column_asked_for(tmp_path: Path) -> None:
    options = StudyOptions(
        data=str(kaokore(tmp_path)), label_column="gender", runs=str(tmp_path / "runs"), accelerator="cpu"
    )
    runner = Runner("likelihood", options, {"small": {"data": "digits"}}, ())
    assert runner.data.class_names == ("male", "female")


def test_code_vectors_stand_beside_their_labels() -> None:
    """110 images, which is more than one batch and less than the split."""
    data = load_data(DataConfig(data="digits", limit=130))
    model = VQVAE(1, downscale=2, hidden=8, residual_hidden=4, embedding_dim=4, codebook_size=8).eval()
    vectors, labels = code_vectors(model, data, "test", limit=110)
    rows = some_rows(len(data.test), 110)
    assert torch.equal(labels, data.test.labels[rows])
    x = to_float(data.test.batch(rows))
    expected = model.quantizer.get_output_from_indices(model.encode(x)[0]).flatten(1)
    assert torch.equal(vectors, expected)
    assert torch.equal(image_vectors(data, "test", limit=110), x.flatten(1))
