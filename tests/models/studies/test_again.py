"""A study that is there already: what goes on, what is trained again, and what is not replaced."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studies_support import CASES, QUICK_PRIOR, SMALLEST

from models.cli import main
from models.studies.catalogue import list_studies
from models.studies.runner import StudyOptions


def test_finished_runs_of_a_study_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import models.training.autoencoder as training
    from models.studies import celeba_sweep as module

    monkeypatch.setattr(module, "SETTINGS", {"small": module.SETTINGS["small"] | SMALLEST | {"steps": 5}})
    monkeypatch.setattr(module, "GRIDS", CASES["celeba-sweep"][0]["GRIDS"])
    monkeypatch.setattr(module, "LONGER", {"small": 6})
    options = StudyOptions(runs=str(tmp_path), limit=150, progress=False, accelerator="cpu")
    list_studies()["celeba-sweep"].load()(options)
    trained = []
    original = training.train
    monkeypatch.setattr(training, "train", lambda *a, **k: trained.append(a[0].name) or original(*a, **k))
    list_studies()["celeba-sweep"].load()(options)
    assert trained == []
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    list_studies()["celeba-sweep"].load()(replace(options, runs=str(moved), accelerator="auto"))
    assert trained == [], "where and on what a run is made changes nothing"
    monkeypatch.setattr(module, "LONGER", {"small": 7})
    options = replace(options, runs=str(moved))
    with pytest.raises(ValueError, match=r"steps is 7, but .*best was made with 6; .*--name.*--overwrite"):
        list_studies()["celeba-sweep"].load()(options)
    assert trained == []
    list_studies()["celeba-sweep"].load()(replace(options, overwrite=True))
    assert trained == ["best"]


def test_a_flag_that_differs_replaces_no_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from models.studies import kaokore_vqvae2 as module

    monkeypatch.setattr(module, "SETTINGS", {"small": module.SETTINGS["small"] | SMALLEST})
    monkeypatch.setattr(module, "PRIORS", {"small": QUICK_PRIOR})
    command = [
        "reproduce",
        "kaokore-vqvae2",
        "--runs",
        str(tmp_path),
        "--no-progress",
        "--accelerator",
        "cpu",
    ]
    command += ["--limit", "100", "--seeds", "2"]
    folder = tmp_path / "reproduce-kaokore-vqvae2-small"
    assert main(command) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def refused(*flags: str) -> None:
        assert main([*command, *flags]) == 2
        error = capsys.readouterr().err
        assert f"{flags[0][2:]} is {flags[1]}, but {folder}" in error
        assert "--name" in error
        assert "--overwrite" in error
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    for flags in (("--seeds", "1"), ("--epochs", "3"), ("--limit", "120")):
        refused(*flags)
    del before[folder / "study.json"]  # as of a study that was made before there was such a file
    (folder / "study.json").unlink()
    assert main([*command, "--epochs", "3"]) == 2
    assert f"epochs is 3, but {folder / 'vqvae-seed0'} was made with 2" in capsys.readouterr().err
    assert main([*command, "--seeds", "1", "--overwrite"]) == 0
    assert (folder / "vqvae-seed1" / "model").is_dir(), "what does not differ is not replaced"
    assert "One run" in (folder / "losses.md").read_text()
    assert main([*command, "--name", "vqvae-seed0/../../elsewhere"]) == 2
    assert main([*command[:-1], "1", "--epochs", "1", "--name", "other"]) == 0
    assert (tmp_path / "other" / "losses.csv").is_file()


def test_an_exported_checkpoint_is_no_finished_run_of_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import models.training.autoencoder as training
    from models.studies import celeba_sweep as module

    monkeypatch.setattr(module, "SETTINGS", {"small": module.SETTINGS["small"] | SMALLEST | {"steps": 5}})
    monkeypatch.setattr(module, "GRIDS", {"small": {"beta": (0.25,), "lr": (1e-2,), "codebook_size": (8,)}})
    monkeypatch.setattr(module, "LONGER", {"small": 6})
    options = StudyOptions(runs=str(tmp_path), limit=150, progress=False, accelerator="cpu", name="study")
    list_studies()["celeba-sweep"].load()(options)
    best = tmp_path / "study" / "best"
    for path in (best / "curves.png", best / "model" / "model.safetensors"):  # stopped before its end
        path.unlink()
    assert main(["export", str(best)]) == 0
    started = []
    original = training.train
    monkeypatch.setattr(training, "train", lambda *a, **k: started.append(k) or original(*a, **k))
    list_studies()["celeba-sweep"].load()(options)
    assert started == [{"resume": True}]


def shrink_likelihood(patch: pytest.MonkeyPatch, **settings: object) -> None:
    from models.studies import likelihood as module

    for attribute, value in CASES["likelihood"][0].items():
        patch.setattr(module, attribute, value)
    patch.setattr(module, "SETTINGS", {"small": module.SETTINGS["small"] | SMALLEST | settings})
    # Six more models, trained and kept like the others; test_studies.py has them.
    for part in ("posterior_collapse", "embedding_picture"):
        patch.setattr(module, part, lambda *_: None)


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs of a finished study."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        shrink_likelihood(patch)
        options = StudyOptions(runs=str(runs), limit=150, progress=False, accelerator="cpu")
        list_studies()["likelihood"].load()(options)
    return runs


@pytest.fixture
def finished(finished_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyOptions:
    """The options of a finished study, in a folder of the test's own."""
    shrink_likelihood(monkeypatch)
    shutil.copytree(finished_runs, tmp_path / "runs")
    return StudyOptions(runs=str(tmp_path / "runs"), limit=150, progress=False, accelerator="cpu")


def test_interrupted_runs_of_a_study_go_on_from_their_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model and a prior without what is written last, each with a checkpoint: both end as they were."""
    import models.training.autoencoder as autoencoder
    import models.training.prior as prior

    shrink_likelihood(monkeypatch)
    options = StudyOptions(runs=str(tmp_path), limit=150, progress=False, accelerator="cpu")
    folder = list_studies()["likelihood"].load()(options)
    table = (folder / "bits.csv").read_text()
    (folder / "vae-gaussian" / "model" / "model.safetensors").unlink()
    (folder / "vqvae-gaussian-prior" / "level0" / "model.safetensors").unlink()
    started = []
    for loop, name in ((autoencoder, "train"), (prior, "train_prior")):
        original = getattr(loop, name)
        monkeypatch.setattr(
            loop, name, lambda *a, original=original, **k: started.append((a[0].name, k)) or original(*a, **k)
        )
    list_studies()["likelihood"].load()(options)
    assert started == [("vae-gaussian", {"resume": True}), ("vqvae-gaussian-prior", {"resume": True})]
    assert (folder / "bits.csv").read_text() == table
    assert len(list((folder / "vae-gaussian" / "logs").iterdir())) == 1, "one table over both starts"


def test_priors_of_an_earlier_model_are_trained_again(
    finished: StudyOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    import models.training.prior as training

    trained = []
    original = training.train_prior
    monkeypatch.setattr(
        training, "train_prior", lambda *a, **k: trained.append(a[0].name) or original(*a, **k)
    )
    list_studies()["likelihood"].load()(finished)
    assert trained == []
    shrink_likelihood(monkeypatch, epochs=3)
    list_studies()["likelihood"].load()(replace(finished, overwrite=True))
    assert len(set(trained)) == len(trained) == 2


def test_only_codes_of_another_model_are_replaced(finished: StudyOptions, monkeypatch) -> None:
    """Another error of encode reaches the user, and the codes of the run stay."""
    import models.codes.encode as module

    (folder,) = Path(finished.runs).iterdir()
    codes = folder / "vqvae-gaussian" / "codes"
    before = {path: path.read_bytes() for path in codes.rglob("*") if path.is_file()}
    assert before

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("a damaged image")

    monkeypatch.setattr(module, "encode", fail)
    with pytest.raises(ValueError, match="a damaged image"):
        list_studies()["likelihood"].load()(finished)
    assert {path: path.read_bytes() for path in codes.rglob("*") if path.is_file()} == before
