"""A run's folder that moves, that two processes want, and in which copies and leftovers lie."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest
import torch
from data_support import write_images
from run_support import write_prior, write_run

from models.cli import main
from models.files import only_writer, write_whole
from models.runs.history import read_history
from models.runs.layout import RunLayout

ROOT = Path(__file__).resolve().parents[3]
QUICK = ["--limit", "64", "--downscale", "2", "--hidden", "8", "--batch-size", "32", "--no-progress"]
QUICK += ["--accelerator", "cpu", "--pictures-every", "0"]


def train(folder: Path, *flags: str) -> int:
    place = ["--runs", str(folder.parent), "--name", folder.name]
    return main(["train", *place, *QUICK, *flags])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(folder, "--epochs", "1") == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_that_moves_keeps_its_best_model(run: Path) -> None:
    """The stored score is one that no later epoch reaches."""
    layout = RunLayout(run)
    state = torch.load(layout.last, weights_only=True)
    (key,) = [key for key in state["callbacks"] if key.startswith("ModelCheckpoint")]
    best = state["callbacks"][key]
    best |= {"best_model_score": torch.tensor(-1.0), "kth_value": torch.tensor(-1.0)}
    best["best_k_models"] = dict.fromkeys(best["best_k_models"], torch.tensor(-1.0))
    torch.save(state, layout.last)
    before = layout.best.read_bytes()
    moved = run.rename(run.parent / "moved")
    assert train(moved, "--resume", "--epochs", "3") == 0
    assert RunLayout(moved).best.read_bytes() == before
    assert torch.load(RunLayout(moved).last, weights_only=True)["epoch"] == 3


def test_two_writers_of_a_folder(tmp_path: Path) -> None:
    with only_writer(tmp_path / "a"), only_writer(tmp_path / "b"):  # noqa: SIM117
        with pytest.raises(ValueError, match="a is being written by another process; wait for its end"):
            with only_writer(tmp_path / "a"):
                pass
    with only_writer(tmp_path / "a"):
        assert list((tmp_path / "a").iterdir()) == [], "the lock leaves no file"
    code = "import sys; from pathlib import Path; from models.files import only_writer\n"
    code += "with only_writer(Path(sys.argv[1])): print('inside', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "inside\n"
        with pytest.raises(ValueError, match="being written"), only_writer(tmp_path / "a"):
            pass
        other.kill()
    with only_writer(tmp_path / "a"):
        pass


def test_file_systems_without_locks_have_none(tmp_path: Path, monkeypatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with only_writer(tmp_path), only_writer(tmp_path):
        pass


@pytest.mark.parametrize("command", ["train", "encode", "sample", "reconstruct"])
def test_a_command_does_not_write_where_another_does(tmp_path: Path, capsys, command: str) -> None:
    run = write_run(tmp_path / "run", limit=60)
    prior = write_prior(tmp_path / "prior", run)
    folder, arguments = {
        "train": (run, ["--runs", str(tmp_path), "--name", "run", "--overwrite", *QUICK]),
        "encode": (run / "codes", [str(run), "--limit", "60"]),
        "sample": (prior / "samples", [str(prior)]),
        "reconstruct": (run / "reconstruct-test", [str(run)]),
    }[command]
    with only_writer(folder):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        capsys.readouterr()
        assert main([command, *arguments]) == 2
        assert f"error: {folder} is being written by another process" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_start_that_another_one_preceded_is_refused(tmp_path: Path, capsys, monkeypatch) -> None:
    """Both found an empty folder; the second one comes to write when the first has finished."""
    import models.training.autoencoder as module

    original = module.started_run

    def after_another(config, *arguments):
        config.folder.mkdir(parents=True)
        config.save(config.layout.config)
        return original(config, *arguments)

    monkeypatch.setattr(module, "started_run", after_another)
    assert train(tmp_path / "run", "--steps", "1") == 2
    assert "run holds the run of another process; choose another name" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["encode x", "sample x", "evaluate x", "reproduce likelihood"])
def test_commands_of_one_process_refuse_torchrun(command: str, capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command.split()) == 2
    assert "torchrun started several processes" in capsys.readouterr().err


def test_another_number_of_processes_is_detected(run: Path, capsys) -> None:
    last = RunLayout(run).last
    state = torch.load(last, weights_only=True)
    assert state["loader"]["world"] == 1
    state["loader"]["world"] = 2
    torch.save(state, last)
    assert train(run, "--resume", "--epochs", "2") == 2
    said = capsys.readouterr().err
    assert "was written by 2 processes, now 1 start" in said
    assert "torchrun --nproc-per-node 2" in said


def test_a_file_is_never_half_written(tmp_path: Path, monkeypatch) -> None:
    write_whole(tmp_path / "new" / "a.json", "first")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "new" / "a.json", "second")
    assert (tmp_path / "new" / "a.json").read_text() == "first"


def test_copies_and_leftovers_do_not_end_a_run(run: Path) -> None:
    layout = RunLayout(run)
    values = read_history(run)
    for copy in ("version_0 (copy)", "version_0_old", "version_", "version_x"):
        shutil.copytree(layout.logs / "version_0", layout.logs / copy)
        shutil.copytree(layout.tensorboard / "version_0", layout.tensorboard / copy)
    shutil.copy(layout.best, layout.checkpoints / "best (copy).ckpt")
    (layout.checkpoints / "last.ckpt.unfinished").write_bytes(b"cut off")
    log = layout.logs / "version_0" / "metrics.csv"
    log.write_text(log.read_text() + "0.5,1e")
    (run / "level0 (copy)").mkdir()
    assert read_history(run) == values
    assert train(run, "--resume", "--epochs", "2") == 0
    assert len(read_history(run)["validation/loss"][0]) == 2
    assert train(run, "--overwrite", "--steps", "1") == 0
    assert (run / "level0 (copy)").is_dir()


def test_a_copy_of_a_level_is_no_output_of_training(tmp_path: Path) -> None:
    for name in ("level0", "level1", "level1 (copy)", "level0.bak", "codes.json"):
        (tmp_path / name).mkdir()
    outputs = RunLayout(tmp_path).outputs("train-prior")
    assert [path.name for path in outputs] == ["codes.json", "level0", "level1"]


# What PYTHONIOENCODING=ascii does when an interpreter starts.
ASCII = """
import runpy, sys
sys.stdout.reconfigure(encoding="ascii", errors="strict")
sys.stderr.reconfigure(encoding="ascii", errors="backslashreplace")
runpy.run_module("models", run_name="__main__", alter_sys=True)
"""


def test_a_terminal_that_lacks_a_character_is_no_failure(tmp_path: Path) -> None:
    for name in ("été", "夏"):
        write_images(tmp_path / "bilder ü" / name, 20, size=(8, 8))
    flags = ["--data", str(tmp_path / "bilder ü"), "--runs", str(tmp_path / "läufe"), "--name", "夏"]
    flags += [*QUICK, "--batch-size", "8", "--steps", "1"]
    done = preloaded.run(["-c", ASCII, "train", *flags])
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert r"\xe9t\xe9" in done.stdout
    assert r"\u590f" in done.stdout


def test_progress_from_the_first_step_to_the_result(tmp_path: Path, capsys) -> None:
    flags = ["--runs", str(tmp_path), "--name", "run", "--limit", "64", "--downscale", "2", "--hidden", "8"]
    flags += ["--batch-size", "8", "--accelerator", "cpu", "--pictures-every", "0", "--epochs", "2"]
    assert main(["train", *flags]) == 0
    said = capsys.readouterr()
    assert re.search(r"trained 16 steps: .*lowest validation loss [\d.]+", said.out)
    bars = said.err.split("\r")
    assert any("epoch=1/2" in bar and "loss=" in bar and "validation=" not in bar for bar in bars)
    assert "validation=" in bars[-1]


@pytest.mark.parametrize("command", ["encode", "evaluate", "reconstruct", "sample", "train"])
def test_what_takes_long_shows_a_bar(tmp_path: Path, capsys, monkeypatch, command: str) -> None:
    """One batch after the other, also inside a shard."""
    monkeypatch.setattr("models.progress.DELAY", 0.0)
    run = write_run(tmp_path / "run", limit=60)
    prior = write_prior(tmp_path / "prior", run)
    shown = [flag for flag in QUICK if flag != "--no-progress"]
    arguments, description, count = {
        "encode": ([str(run), "--batch-size", "20", "--out", str(tmp_path / "out")], "encode", 180),
        "evaluate": ([str(run), "--batch-size", "20"], "evaluate", 60),
        "reconstruct": ([str(run), "--images", "--batch-size", "20"], "reconstruct", 60),
        "sample": ([str(prior), "--count", "2"], "sample", 20 * 16),
        "train": (["--runs", str(tmp_path / "runs"), *shown, "--steps", "1"], "decode", 192),
    }[command]  # fmt: skip
    capsys.readouterr()
    assert main([command, *arguments]) == 0
    said = capsys.readouterr().err
    assert f"{description}:" in said
    assert f"/{count} " in said
