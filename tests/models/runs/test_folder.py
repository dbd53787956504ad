"""The folder of a run: what --overwrite removes, what --resume goes on from, what both refuse."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from training_support import settings, train

from models.cli import main
from models.codes.store import CodeStore
from models.data import DataConfig, load_data
from models.runs.config import PriorConfig, TrainConfig

ONE_STEP = ["--limit", "64", "--downscale", "2", "--hidden", "8", "--steps", "1", "--no-progress"]
ONE_STEP += ["--accelerator", "cpu", "--pictures-every", "0"]
PRIOR = ["--width", "8", "--layers", "1", "--heads", "2", "--steps", "1", "--no-progress", "--accelerator"]
PRIOR += ["cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VQ-VAE ``x`` of one step, its codes, and a prior ``p``."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # settings keep the paths that they are given
        assert main(["train", "--name", "x", *ONE_STEP]) == 0
        assert main(["encode", "runs/x"]) == 0
        assert main(["train-prior", "--name", "p", "--codes", "runs/x/codes", *PRIOR]) == 0
    return folder / "runs"


@pytest.fixture
def copy(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(runs, tmp_path / "runs")).relative_to(tmp_path)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train-prior --name x --codes runs/x/codes --overwrite", "codes is runs/x/codes, which lies in"),
        ("train-prior --name x --codes runs/p --overwrite", "is of a train run, not of a train-prior run"),
        ("train-prior --name x --codes runs/p --resume", "is of a train run, not of a train-prior run"),
        ("train --name p --overwrite", "is of a train-prior run, not of a train run"),
        ("train --name p --resume", "is of a train-prior run, not of a train run"),
        ("train --name= --overwrite", "name is ''; accepted: the name of a folder inside runs"),
        ("train --name . --overwrite", "name is '.'; accepted: the name of a folder inside runs"),
        ("train --name x/../.. --overwrite", "name is 'x/../..'; accepted: the name of a folder inside runs"),
        ("train --name foreign --overwrite", "config.yaml is not of a train run, as it lacks model"),
        ("train --name other --overwrite", "other/config.yaml: unknown setting 'port'"),
        ("train --name nameless", "nameless holds model, but no config.yaml says of what run"),
        ("train --name x", "holds an earlier run; go on with it (--resume)"),
        ("train --name x/model", "name is x/model, whose folder runs/x/model would lie in the run"),
        ("train --name=new --runs=runs/x", "whose folder runs/x/new would lie in the run"),
        ("export runs/x --out runs/p/model", "out is runs/p/model, which lies in the run"),
        ("export runs/x --out runs/x/checkpoints/best", "which holds other files of the run"),
        ("export runs/x --out runs/x/codes", "which holds other files of the run"),
        ("export runs/x --out runs/x/logs/new", "which holds other files of the run"),
        ("export runs/p --out runs/x", "out is runs/x/level0, which lies in the run"),
        ("export runs/x --out taken", "where taken/config.json is not of a VQVAE; accepted: a new folder"),
        ("train --name x --resume --overwrite", "resume and overwrite exclude each other"),
        ("train --name swept", "whose folder runs/swept holds the run runs/swept/beta1; choose another name"),
        ("train-prior --name swept --codes runs/x/codes", "holds the run runs/swept/beta1"),
        ("convert other.pt --out runs/p/new", "out is runs/p/new, which lies in the run"),
        ("encode runs/x --out runs/p/codes", "out is runs/p/codes, which lies in the run"),
        ("encode runs/x --out runs/x", "out is runs/x, which holds other files of the run"),
        ("evaluate runs/x --out runs/p/x.json", "out is runs/p/x.json, which lies in the run"),
        ("evaluate runs/x --out runs/x/config.yaml", "which holds other files of the run"),
        ("evaluate runs/x --out runs/x/codes/codes.json", "which holds other files of the run"),
        ("report runs/x --out runs/x/codes/codes.json", "which holds other files of the run"),
        (
            "evaluate runs/x --split train --out runs/x/evaluation-test.json",
            "which holds other files of the run",
        ),
        ("report runs/x --out runs/x/evaluation-test.json", "which holds other files of the run"),
        ("reconstruct runs/x --out runs/x/codes", "which holds other files of the run"),
        ("reconstruct runs/x --out runs/p/x", "out is runs/p/x, which lies in the run"),
        ("sample runs/p --out runs/x/samples", "out is runs/x/samples, which lies in the run"),
        ("sample runs/p --out runs/p/level0/x", "which holds other files of the run"),
        ("report runs/x --out runs/p/x.html", "out is runs/p/x.html, which lies in the run"),
        ("compare runs/x --out runs/p/x", "out is runs/p/x, which lies in the run"),
    ],
)
def test_what_is_not_this_run_is_refused_and_stays(copy: Path, capsys, command: str, message: str) -> None:
    for name, text in (("foreign", "name: a\n"), ("other", "port: 80\n")):
        (copy / name).mkdir()
        (copy / name / "config.yaml").write_text(text)
    (copy / "nameless" / "model").mkdir(parents=True)
    shutil.copytree(copy / "p" / "level0", "taken")
    shutil.copytree(copy / "x", copy / "swept" / "beta1")
    (copy / "x" / "evaluation-test.json").write_text("{}")
    before = files(Path())
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert files(Path()) == before


def test_exports_outside_of_runs_may_be_written_again(copy: Path) -> None:
    for command in (
        ["runs/x", "--out", "new"],
        ["runs/x", "--out", "runs/x/model"],
        ["runs/p", "--out", "q"],
    ):
        assert main(["export", *command]) == 0
        assert main(["export", *command]) == 0
    assert files(Path("new")).keys() == {Path("new/config.json"), Path("new/model.safetensors")}


def test_a_report_of_a_study_may_lie_in_one_of_its_runs(copy: Path) -> None:
    """It says of the same runs what it would beside them."""
    shutil.copytree(copy / "x", "study/first")
    assert main(["report", "study", "--out", "study/first/all.html"]) == 0
    assert Path("study/first/all.html").is_file()
    assert main(["report", "study/first", "--out", "study/all.html"]) == 0


@pytest.mark.parametrize("name", ["x", "p"])
def test_overwriting_removes_what_training_wrote_and_nothing_else(copy: Path, name: str) -> None:
    folder = copy / name
    (folder / "notes").mkdir()
    (folder / "notes" / "read.me").write_text("mine")
    kept = files(folder / "notes") | (files(folder / "codes") if name == "x" else {})
    (folder / "level7").mkdir()  # a train-prior run's, of more levels
    (folder / "checkpoints" / "stale").touch()
    flags = ["--name", name, "--overwrite"]
    if name == "x":
        assert main(["train", *flags, *ONE_STEP, "--seed", "3"]) == 0
    else:
        assert main(["train-prior", *flags, *PRIOR, "--codes", "runs/x/codes", "--seed", "3"]) == 0
        assert not (folder / "level7").exists()
    assert kept.items() <= files(folder).items()
    assert not (folder / "checkpoints" / "stale").exists()
    assert len(list((folder / "logs").iterdir())) == 1
    assert "seed: 3" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize("value", [-2075020440, 1000])
def test_damaged_codes_cost_no_earlier_prior(copy: Path, capsys, value: int) -> None:
    shard = next((copy / "x" / "codes" / "validation").glob("*.arrow"))
    whole = shard.read_bytes()
    codes = CodeStore(copy / "x" / "codes").validation.batch([0])[0].int().numpy().tobytes()
    assert codes in whole
    shard.write_bytes(whole.replace(codes, np.int32(value).tobytes() + codes[4:]))
    before = files(copy)
    for name, how in (("p", "--overwrite"), ("new", "--dry-run"), ("new", "--width=8")):
        command = ["train-prior", "--name", name, "--codes", "runs/x/codes", *PRIOR, how]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{shard} is damaged: level0 holds values from " in error
        assert "; accepted: 0 to 511; write it again with `python -m models encode RUN`" in error
        assert files(copy) == before
    assert main(["encode", "runs/x"]) == 0  # the remedy
    assert shard.read_bytes() == whole
    assert main([*command[:2], "new", *command[3:]]) == 0


def test_codes_of_a_replaced_model_are_not_taken_for_the_new_one(copy: Path, capsys) -> None:
    assert main(["train", "--name", "x", "--overwrite", *ONE_STEP, "--seed", "3"]) == 0
    assert main(["encode", str(copy / "x")]) == 2
    assert "holds codes with weights" in capsys.readouterr().err
    assert main(["encode", str(copy / "x"), "--overwrite"]) == 0
    assert main(["train-prior", "--name", "p", "--resume"]) == 2
    assert "was trained on codes with weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limits", "done"),
    [
        ("--epochs 2 --steps 5", "3 epochs are done already"),
        ("--steps 2", "3 steps are done already"),
        ("--epochs 9 --steps 1 --lr 0.0003", "3 steps are done already"),
    ],
)
def test_a_lower_limit_than_was_done_changes_nothing(copy: Path, capsys, limits: str, done: str) -> None:
    """The settings of the run say what it was trained with."""
    more = ["--steps=none", "--epochs=3"] if "steps" not in done else ["--steps=3"]
    assert main(["train", "--name", "x", "--resume", *more]) == 0
    before = files(copy)
    capsys.readouterr()
    assert main(["train", "--name", "x", "--resume", *limits.split()]) == 0
    assert f"{done} in runs/x, more than asked for: nothing is trained or changed" in capsys.readouterr().out
    assert files(copy) == before
    shutil.rmtree(copy / "x" / "model")
    before = files(copy)
    assert main(["train", "--name", "x", "--resume", *limits.split()]) == 2
    assert f"{done} in runs/x, more than asked for, and the run is not finished" in capsys.readouterr().err
    assert files(copy) == before


def test_a_lower_limit_of_a_prior_changes_nothing(copy: Path, capsys) -> None:
    resume = ["train-prior", "--name", "p", "--resume"]
    assert main([*resume, "--steps", "2"]) == 0
    before = files(copy)
    capsys.readouterr()
    assert main([*resume, "--steps", "1"]) == 0
    assert "2 steps are done already in runs/p" in capsys.readouterr().out
    assert files(copy) == before


def test_a_time_limit_that_has_passed_changes_nothing(copy: Path, capsys) -> None:
    resume = ["train", "--name", "x", "--resume", "--steps", "3", "--minutes"]
    assert main([*resume, "9"]) == 0
    last = copy / "x" / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    state["callbacks"]["TimeLimit"]["seconds"] = 90.0
    torch.save(state, last)
    before = files(copy)
    capsys.readouterr()
    assert main([*resume, "1"]) == 0
    assert "1.5 minutes are done already" in capsys.readouterr().out
    assert files(copy) == before


@pytest.mark.parametrize("how", ["train", "resume", "dry-run"])
def test_codes_of_earlier_weights_train_no_prior(copy: Path, capsys, how: str) -> None:
    """Which `sample` would refuse to decode."""
    assert main(["train", "--name", "x", "--resume", "--steps", "2"]) == 0
    before = files(copy)
    capsys.readouterr()
    command = ["train-prior", "--name", "new", "--codes", "runs/x/codes", *PRIOR]
    changed = {"train": [], "resume": ["--name", "p", "--resume", "--steps", "2"], "dry-run": ["--dry-run"]}
    assert main([*command, *changed[how]]) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: the weights in runs/x/model have changed since the codes in runs/x/codes were made; "
        "encode again (--overwrite) and train the prior on the new codes\n"
    )
    assert files(copy) == before


def test_codes_of_a_model_that_lies_elsewhere_train_a_prior(copy: Path) -> None:
    (copy / "x" / "model").rename(copy / "moved")
    assert main(["train-prior", "--name", "new", "--codes", "runs/x/codes", *PRIOR]) == 0


@pytest.mark.parametrize("gone", ["checkpoints"])
def test_a_trained_run_without_its_checkpoint_does_not_start_over(copy: Path, capsys, gone: str) -> None:
    for name in gone.split():
        path = copy / "x" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = files(copy)
    assert main(["train", "--name", "x", "--resume"]) == 2
    assert (
        "but no checkpoints/last.ckpt to go on from; train again with --overwrite" in capsys.readouterr().err
    )
    assert files(copy) == before


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_run_goes_on_from_its_best_checkpoint_where_the_last_is_lost(copy: Path, capsys, harm: str) -> None:
    last = copy / "x" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-2000]) if harm == "cut" else last.unlink()
    assert main(["train", "--name", "x", "--resume", "--steps", "2"]) == 0
    reason = "cannot be read" if harm == "cut" else "is missing"
    assert f"last.ckpt {reason}; going on from" in capsys.readouterr().err
    assert torch.load(last, weights_only=True)["global_step"] == 2


def test_a_run_killed_before_its_first_checkpoint_starts_over(copy: Path) -> None:
    for path in ("checkpoints", "model"):
        shutil.rmtree(copy / "x" / path)
    assert main(["train", "--name", "x", "--resume"]) == 0
    assert (copy / "x" / "model").is_dir()


def test_the_best_checkpoint_of_an_unfinished_run_serves_the_commands(copy: Path, capsys) -> None:
    """And export writes what the finished run had."""
    files_of_model = files(copy / "x" / "model")
    assert main(["evaluate", "runs/x", "--prior", "runs/p", "--out", "finished.json"]) == 0
    shutil.rmtree(copy / "x" / "model")
    shutil.rmtree(copy / "x" / "codes")
    shutil.rmtree(copy / "p" / "level0")
    capsys.readouterr()
    for command in (
        ["evaluate", "runs/x"],
        ["reconstruct", "runs/x"],
        ["encode", "runs/x"],
    ):
        assert main(command) == 0
        assert capsys.readouterr().err.count("runs/x is not finished: its best checkpoint so far") == 1
    assert main(["export", "runs/x"]) == 0
    assert files(copy / "x" / "model") == files_of_model
    assert main(["sample", "runs/p", "--count", "1"]) == 0
    assert "runs/p is not finished" in capsys.readouterr().err
    assert main(["export", "runs/p", "--checkpoint", "last"]) == 0
    assert main(["evaluate", "runs/x", "--prior", "runs/p", "--out", "exported.json"]) == 0
    first, second = (json.loads(Path(f"{name}.json").read_text()) for name in ("finished", "exported"))
    assert first == second
    shutil.rmtree(copy / "x" / "checkpoints")
    assert main(["export", "runs/x"]) == 2
    assert "best.ckpt does not exist: the run has not come that far" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["bytes", "tensor", "dict", "truncated", "another"])
def test_a_damaged_checkpoint_is_one_error(copy: Path, capsys, content: str) -> None:
    last = copy / "x" / "checkpoints" / "last.ckpt"
    if content == "bytes":
        last.write_bytes(b"junk")
    elif content == "truncated":
        last.write_bytes(last.read_bytes()[:-2000])
    elif content == "another":
        state = torch.load(last, weights_only=True)
        state["state_dict"]["model.extra"] = torch.zeros(2)
        torch.save(state, last)
    else:
        torch.save(torch.zeros(2) if content == "tensor" else {"epoch": 1}, last)
    shutil.copyfile(last, last.with_name("best.ckpt"))
    before = files(copy)
    assert main(["train", "--name", "x", "--resume", "--steps", "3"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (
        "is of another model: model.extra" in error if content == "another" else "is no checkpoint" in error
    )
    assert "--overwrite" in error
    assert files(copy) == before


def test_settings_of_another_kind_of_run_are_named(capsys) -> None:
    assert main(["train-prior", "--config", "mnist"]) == 2
    assert "mnist is of a train run, not of a train-prior run: it sets data" in capsys.readouterr().err
    assert TrainConfig.command == "train"
    assert PriorConfig.command == "train-prior"


def test_an_empty_run_may_be_resumed(tmp_path: Path) -> None:
    """Stopped before its first step was logged."""
    data = load_data(DataConfig(data="digits", limit=64))
    config = settings(tmp_path, name="early", steps=1, limit=64)
    config.folder.mkdir()
    config.save(config.folder / "config.yaml")
    train(config, data, resume=True)
    assert (config.folder / "model").is_dir()


@pytest.mark.parametrize("command", ["evaluate", "encode", "reconstruct", "export"])
def test_a_run_without_a_checkpoint_has_not_come_so_far(copy: Path, capsys, command: str) -> None:
    for path in ("checkpoints", "model", "codes"):
        shutil.rmtree(copy / "x" / path)
    assert main([command, "runs/x"]) == 2
    expected = "error: runs/x/checkpoints/best.ckpt does not exist: the run has not come that far; go on with"
    assert capsys.readouterr().err == f"{expected} --resume\n"


def test_a_prior_without_a_checkpoint_has_not_come_so_far(copy: Path, capsys) -> None:
    for path in ("checkpoints", "level0"):
        shutil.rmtree(copy / "p" / path)
    for command in (["sample", "runs/p"], ["evaluate", "runs/x", "--prior", "runs/p"]):
        assert main(command) == 2
        assert "runs/p/checkpoints/best.ckpt does not exist: the run has not come that far" in (
            capsys.readouterr().err
        )


@pytest.mark.parametrize("place", ["file", "file/below", "read-only", "/proc/x"])
def test_where_no_run_can_be_written_is_named(tmp_path: Path, capsys, monkeypatch, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "read-only").mkdir()
    access = os.access  # the tests may run as a user who may write anywhere
    denied = tmp_path / "read-only"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != denied and access(path, mode))
    runs = tmp_path / place
    assert main(["train", "--runs", str(runs), "--name", "r", *ONE_STEP]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: runs is {runs}, where {runs / 'r'} cannot be ")
    assert said.err.endswith("; give another folder (--runs)\n")
    assert said.err.count("\n") == 1
    assert said.out == "" or place == "/proc/x", "before the data are loaded, where that can be told"
    assert not (denied / "r").exists()
