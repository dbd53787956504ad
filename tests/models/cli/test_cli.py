"""What the commands check before they work, and how they say what is wrong."""

from __future__ import annotations

import json
import os
import runpy
import struct
import sys
from pathlib import Path

import pytest
import torch
from data_support import write_images
from run_support import write_prior, write_run

from models.cli import encode, evaluate, main, reproduce, sample, train
from models.codes.description import CodeDescription
from models.runs.config import TrainConfig
from models.runs.start import start_config


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on digits enlarged to 16 x 16, with its prior beside it in ``prior``."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "digits", size="16", limit=60)
    write_prior(folder.parent / "prior", folder)
    return folder


@pytest.fixture
def prior(run: Path) -> Path:
    return run.parent / "prior"


def fails(capsys, *arguments: object) -> str:
    """The one line that a command which cannot work prints."""
    capsys.readouterr()  # what the fixtures have said
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def no_sampling(monkeypatch) -> None:
    def sampled(*_: object, **__: object) -> None:
        raise AssertionError("sampled before the input was checked")

    monkeypatch.setattr("models.codes.sample.sample_codes", sampled)


def test_judge_reads_images_in_the_form_of_the_samples(run: Path, prior: Path, tmp_path, capsys) -> None:
    arguments = ["sample", prior, "--count", "2", "--judge", "digits", "--out", tmp_path, "--classes", "3, 8"]
    assert main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr().out
    right = float(said.split("right on ")[1].split("%")[0])
    assert right > 90, "it learns from all images, not only from the 60 that were encoded"


def test_judge_of_other_classes_is_refused_before_sampling(
    prior: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    no_sampling(monkeypatch)
    for name in ("ant", "bee"):
        write_images(tmp_path / "insects" / name, 20)
    said = fails(capsys, "sample", prior, "--judge", tmp_path / "insects")
    assert "was trained with the classes 0, 1, 2, 3" in said
    assert "insects has ant, bee" in said
    write_images(tmp_path / "flat", 20)
    assert "flat has no labels" in fails(capsys, "sample", prior, "--judge", tmp_path / "flat")
    assert "data is ''" in fails(capsys, "sample", prior, "--judge", "")


def test_judge_needs_a_conditional_prior(run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    no_sampling(monkeypatch)
    plain = write_prior(tmp_path / "plain", run, conditional=False)
    assert "trained without labels" in fails(capsys, "sample", plain, "--judge", "digits")


def test_priors_are_not_asked_for_classes_of_another_column(tmp_path: Path, capsys) -> None:
    """Numbers of another column's classes would pass for the prior's and give wrong bits."""
    datasets = pytest.importorskip("datasets")
    write_images(tmp_path / "data" / "images", 20)
    files = sorted(str(file) for file in (tmp_path / "data" / "images").glob("*.png"))
    images = datasets.Dataset.from_dict(
        {"image": files, "label": ["ant", "bee"] * 10, "other": ["day", "night"] * 10}
    ).cast_column("image", datasets.Image())
    images.to_parquet(str(tmp_path / "data" / "train.parquet"))
    shared = {"cache_dir": str(tmp_path / "cache"), "size": "8"}
    run = write_run(tmp_path / "run", data=str(tmp_path / "data"), **shared)
    prior = write_prior(tmp_path / "prior", run)
    out = ("--out", tmp_path / "figures.json")
    capsys.readouterr()
    said = fails(capsys, "evaluate", run, "--prior", prior, "--label-column", "other", *out)
    assert "classes ant, bee, but" in said
    assert "has day, night; give data with the same labels (--label-column)" in said
    plain = write_prior(tmp_path / "plain", run, conditional=False)
    unconditional = ["evaluate", run, "--prior", plain, "--label-column", "other", *out]
    assert main([str(argument) for argument in unconditional]) == 0


def test_figures_say_what_they_are_of(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run", likelihood="mse", limit=60)
    prior = write_prior(tmp_path / "prior", run)
    assert main(["evaluate", str(run), "--prior", str(prior)]) == 0
    assert "these bits are of the squared error on the validation split" in capsys.readouterr().out
    written = (run / "evaluation-test.json").read_text()
    found = json.loads(written)
    of = found.pop("of")
    assert not any(isinstance(value, dict) for value in found.values()), "figures stay flat"
    assert (of["data"], of["split"], of["images"], of["settings"]["limit"]) == ("digits", "test", 60, 60)
    assert of["prior"] == str(prior)
    assert of["weights"] == CodeDescription.load(prior).weights
    assert found["nmse"] == pytest.approx(found["mse"] / of["variance"])
    said = fails(capsys, "evaluate", run, "--limit", "50")
    assert "limit is 50, which is not that of the run, whose figures" in said
    assert (run / "evaluation-test.json").read_text() == written
    same = ["evaluate", str(run), "--limit", "60", "--cache-gb", "1"]
    assert main(same) == 0
    assert main(["evaluate", str(run), "--limit", "50", "--out", str(tmp_path / "50.json")]) == 0
    assert json.loads((tmp_path / "50.json").read_text())["of"]["settings"]["limit"] == 50


def test_damaged_weights_are_measured_by_no_command(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run", limit=60)
    prior = write_prior(tmp_path / "prior", run)
    for file in (prior / "level0" / "model.safetensors", run / "model" / "model.safetensors"):
        file.write_bytes(file.read_bytes()[:-4] + struct.pack("<f", float("nan")))
        before = sorted(tmp_path.rglob("*"))
        commands = [["evaluate", run, "--prior", prior], ["sample", prior, "--count", "1"]]
        if run in file.parents:
            commands += [["evaluate", run], ["reconstruct", run], ["encode", run, "--out", tmp_path / "new"]]
        for command in commands:
            capsys.readouterr()
            said = fails(capsys, *command)
            assert "model.safetensors is damaged: its weights hold NaN or infinity" in said
        assert sorted(tmp_path.rglob("*")) == before


def test_outputs_are_checked_before_the_work(run: Path, prior: Path, tmp_path: Path, capsys, monkeypatch):
    no_sampling(monkeypatch)
    file = tmp_path / "file"
    file.touch()
    said = fails(capsys, "sample", prior, "--out", file)
    assert f"out is {file}, which is a file; accepted: the path of a folder" in said
    assert f"{file}, which is a file" in fails(capsys, "reconstruct", run, "--out", file)
    assert f"{file}, which is a file" in fails(capsys, "encode", run, "--out", file)
    monkeypatch.setattr("models.cli.evaluate.open_run", lambda *_: pytest.fail("opened"))
    assert "is a folder; accepted: the path of a file" in fails(capsys, "evaluate", run, "--out", tmp_path)
    assert f"as {file} is no folder" in fails(capsys, "evaluate", run, "--out", file / "x.json")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "may not be written to" in fails(capsys, "evaluate", run, "--out", tmp_path / "x.json")


def test_files_that_cannot_be_written_are_named_in_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    said = fails(capsys, "train", "--runs", tmp_path / "file", "--data", "digits", "--no-progress")
    assert "file" in said


def test_system_errors_name_the_path(tmp_path: Path, capsys, monkeypatch) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device", "/there/x.png")

    monkeypatch.setattr(evaluate, "opened_config", full)
    assert fails(capsys, "evaluate", tmp_path) == "error: /there/x.png: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train"], ""),
        (["encode", "run"], "; run the same command again to go on"),
        (["reproduce", "celeba-sweep"], "; run the same command again to go on"),
        (["evaluate", "run"], ""),
        (["sample", "prior"], ""),
    ],
)
def test_interruption_says_how_to_go_on(arguments: list[str], hint: str, capsys, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for module, name in ((train, "training_config"), (encode, "opened_config"), (evaluate, "opened_config")):
        monkeypatch.setattr(module, name, interrupted)
    monkeypatch.setattr(sample, "open_priors", interrupted)
    monkeypatch.setattr(reproduce, "StudyOptions", interrupted)
    assert main(arguments) == 130
    assert capsys.readouterr().err == f"interrupted{hint}\n"


class _Interrupts:
    """Finds modules, and is interrupted at one of them."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "models.cli.train":
            raise KeyboardInterrupt


@pytest.mark.parametrize("entry", ["module", "console command"])
def test_an_interruption_of_the_imports_is_one_line(entry: str, capsys, monkeypatch) -> None:
    from vq_kernels import command

    for name in [name for name in sys.modules if name.startswith("models.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Interrupts(), *sys.meta_path])
    monkeypatch.setattr(sys, "path", [*sys.path])
    if entry == "module":
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("models", run_name="__main__")
        assert ended.value.code == 130
    else:
        assert command.main() == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--temperature", "none", "is 'none'; accepted: a number, or one for each level with commas between"),
        ("--temperature", "x", "is 'x'; accepted: a number, or one for each level"),
        ("--temperature", "0.5,", "is '0.5,'; accepted: a number, or one for each level"),
        ("--top-k", "1.5", "is '1.5'; accepted: a whole number, or none, or one for each level"),
    ],
)
def test_draws_that_are_no_numbers(prior: Path, capsys, flag: str, value: str, message: str) -> None:
    with pytest.raises(SystemExit):
        main(["sample", str(prior), flag, value])
    assert f"error: argument {flag}: {message}" in capsys.readouterr().err


def test_draws_out_of_range_say_what_is_in_it(prior: Path, capsys) -> None:
    for flag, value, message in (
        ("--temperature", "-1", "temperature is -1; accepted: a finite number above 0"),
        ("--temperature", "nan", "temperature is nan; accepted: a finite number above 0"),
        ("--top-p", "-1", "top_p is -1; accepted: a number above 0, up to 1"),
    ):
        assert message in fails(capsys, "sample", prior, f"{flag}={value}", "--device", "cpu")


@pytest.mark.parametrize(
    ("flags", "hint"), [([], "; go on with --resume"), (["--dry-run"], "")], ids=["run", "dry-run"]
)
def test_an_interrupted_training_goes_on_where_it_has_begun(
    flags: list[str], hint: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    command = ["train", "--runs", str(tmp_path), "--limit", "64", "--downscale", "2", "--hidden", "8"]
    command += ["--steps", "1", "--no-progress"]
    with monkeypatch.context() as patch:
        patch.setattr("models.training.autoencoder.fit", interrupted)
        assert main([*command, *flags]) == 130
    assert capsys.readouterr().err == f"interrupted{hint}\n"
    assert bool(list(tmp_path.iterdir())) == bool(hint)
    if hint:
        assert main([*command, "--resume"]) == 0


def test_a_prior_whose_model_moved_or_changed_says_so(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run", limit=60)
    prior = write_prior(tmp_path / "prior", run)
    run.rename(tmp_path / "moved")
    said = fails(capsys, "sample", prior)
    assert "run/model/model.safetensors does not exist" in said
    assert "--model RUN" in said
    arguments = ["sample", prior, "--model", tmp_path / "moved", "--count", "1"]
    assert main([str(argument) for argument in arguments]) == 0
    write_run(tmp_path / "run", seed=1, limit=60)
    assert "have changed since the prior in" in fails(capsys, "sample", prior)
    assert CodeDescription.load(prior).model == str(tmp_path / "run" / "model")


def test_reconstructions_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", limit=60)
    for limit in (60, 20):
        assert main(["reconstruct", str(run), "--images", "--limit", str(limit)]) == 0
        assert len(list((run / "reconstruct-test" / "images").iterdir())) == limit


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_of_samples_have_a_range(prior: Path, capsys, seed: int) -> None:
    said = fails(capsys, "sample", prior, "--seed", seed)
    assert f"seed is {seed}; accepted: an integer from 0 to below 2**63" in said
    assert torch.Generator().manual_seed(2**63 - 1)


def test_a_run_that_has_moved_goes_on_where_it_is_now(tmp_path: Path) -> None:
    there = tmp_path / "moved" / "new-name"
    there.mkdir(parents=True)
    TrainConfig(name="old", runs="old-runs", lr=0.5).save(there / "config.yaml")
    given = {"name": "new-name", "runs": str(tmp_path / "moved"), "epochs": 3}
    config = start_config(TrainConfig, given, resume=True)
    assert config.folder == there
    assert (config.lr, config.epochs) == (0.5, 3)
