"""Figures that `evaluate` wrote are shown as a run's as long as the run has the weights they are of."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from run_support import write_prior, write_run

from models.cli import main
from models.report.contents import run_section
from models.runs.config import TrainConfig
from models.runs.export import hashes_now
from models.runs.layout import RunLayout
from models.runs.measured import read_figures


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``a``, measured, and ``b``, other weights for ``a``, and a prior ``p`` over the codes of ``a``."""
    folder = tmp_path_factory.mktemp("runs")
    run = write_run(folder / "a", limit=60)
    logs = run / "logs" / "version_0"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text("step,validation/loss\n1,0.5\n")
    write_run(folder / "b", limit=60)
    write_run(folder / "other", seed=1, limit=60)
    write_prior(folder / "p", run)
    assert main(["evaluate", str(run)]) == 0
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs"))


def replace_weights(run: Path) -> None:
    shutil.copytree(run.parent / "other" / "model", run / "model", dirs_exist_ok=True)


def shown(runs: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `compare` prints of ``a`` and ``b``, and the page of ``a``."""
    capsys.readouterr()
    assert main(["compare", str(runs / "a"), str(runs / "b"), "--out", str(runs / "compare")]) == 0
    assert main(["report", str(runs / "a")]) == 0
    return capsys.readouterr().out + (runs / "a" / "report.html").read_text()


def test_figures_of_earlier_weights_are_not_shown_as_the_run_s(runs: Path, capsys) -> None:
    of_before = shown(runs, capsys)
    assert of_before.count("test mse") == 1
    assert '<th scope="col">test split</th>' in of_before
    assert "earlier weights" not in of_before
    replace_weights(runs / "a")
    of_now = shown(runs, capsys)
    assert "test mse" not in of_now
    assert '<th scope="col">test split</th>' not in of_now
    said = f"evaluation-test.json is of earlier weights of {runs / 'a'} and not shown; renew it: python -m "
    said += f"models evaluate {runs / 'a'}"
    assert of_now.count(said) == 2, "once in the table of both runs, once on the page"
    both = runs / "both.html"
    assert main(["report", str(runs / "a"), str(runs / "b"), "--out", str(both)]) == 0
    assert said in both.read_text()
    assert main(["evaluate", str(runs / "a")]) == 0
    again = shown(runs, capsys)
    assert again.count("test mse") == 1
    assert "earlier weights" not in again


def test_figures_of_earlier_priors_are_not_shown_either(runs: Path) -> None:
    run, prior = RunLayout(runs / "a"), runs / "p"
    split = ["--split", "validation", "--prior", str(prior)]
    assert main(["evaluate", str(run.folder), *split]) == 0
    assert "bits_codes_prior" in read_figures(run, "validation")[0]
    level = prior / "level0" / "model.safetensors"
    level.write_bytes(level.read_bytes()[:-4] + b"\0\0\0\x3f")
    figures, reason = read_figures(run, "validation")
    assert not figures
    assert f"is of earlier weights of {prior} and not shown; renew it" in reason
    assert reason.endswith(f"evaluate {run.folder} {' '.join(split)}")
    shutil.rmtree(prior)
    assert "bits_codes_prior" in read_figures(run, "validation")[0], "priors that are not there say nothing"


def test_figures_of_priors_are_kept_while_they_hold(runs: Path, capsys) -> None:
    run, prior = RunLayout(runs / "a"), runs / "p"
    assert main(["evaluate", str(run.folder), "--prior", str(prior)]) == 0
    measured = read_figures(run, "test")[0]
    assert {"bits_codes_prior", "bits_per_dim", "nats_per_code"} <= set(measured)
    capsys.readouterr()
    assert main(["evaluate", str(run.folder)]) == 0
    assert read_figures(run, "test")[0] == measured
    of = json.loads(run.evaluation("test").read_text())["of"]
    assert (of["prior"], len(of["prior_weights"])) == (str(prior), 1)
    said = f"nats_per_code of the earlier evaluation with --prior {prior} are kept"
    assert said in capsys.readouterr().out
    level = prior / "level0" / "model.safetensors"
    level.write_bytes(level.read_bytes()[:-4] + b"\0\0\0\x3f")
    assert main(["evaluate", str(run.folder)]) == 0
    assert f"those of {prior}, whose weights have changed, are gone: bits_codes_" in capsys.readouterr().out
    assert "bits_codes_prior" not in read_figures(run, "test")[0]
    assert main(["evaluate", str(run.folder), "--prior", str(prior)]) == 0
    replace_weights(run.folder)
    assert main(["evaluate", str(run.folder)]) == 0
    assert "bits_codes_prior" not in read_figures(run, "test")[0]
    assert json.loads(run.evaluation("test").read_text())["of"]["prior"] is None


def test_figures_that_do_not_say_what_they_are_of_are_shown(runs: Path) -> None:
    run = RunLayout(runs / "b")
    assert read_figures(run, "test") == ({}, "")
    for origin in ({}, {"of": {}}, {"of": None}):
        run.evaluation("test").write_text(json.dumps({"mse": 0.5, "rfid": "no weights"} | origin))
        assert read_figures(run, "test") == ({"mse": 0.5}, "")


def test_the_weights_of_an_unfinished_run_are_those_of_its_best_checkpoint(runs: Path) -> None:
    """Which reading figures does not write."""
    run = RunLayout(runs / "a")
    run.checkpoints.mkdir()
    run.best.touch()
    shutil.move(run.model, run.best_models)
    exported = run.best_models.joinpath("model.safetensors").stat().st_mtime_ns
    os.utime(run.best, ns=(exported, exported))
    assert read_figures(run, "test")[0]
    os.utime(run.best, ns=(exported + 10**9, exported + 10**9))  # a better one has been found since
    assert not read_figures(run, "test")[0]
    shutil.rmtree(run.best_models)
    assert "earlier weights" in read_figures(run, "test")[1]
    assert not run.best_models.exists()


def test_runs_without_logs_are_compared_by_what_was_measured(runs: Path) -> None:
    shutil.rmtree(runs / "a" / "logs")
    assert main(["compare", str(runs / "a"), str(runs / "b"), "--out", str(runs / "compare")]) == 0
    assert "test mse" in (runs / "compare" / "figures.md").read_text()


def test_pictures_of_earlier_weights_are_not_shown_as_the_run_s(runs: Path, capsys, monkeypatch) -> None:
    def titles() -> set[str]:
        return {picture.title for picture in run_section(RunLayout(runs / "a")).pictures}

    command = ["reconstruct", str(runs / "a"), "--count", "4"]
    assert main([*command, "--images"]) == 0
    assert main([*command, "--split", "validation"]) == 0
    both = {"reconstruct-test/side_by_side.png", "reconstruct-validation/side_by_side.png"}
    assert both < titles()
    replace_weights(runs / "a")
    assert not titles()
    words = run_section(RunLayout(runs / "a")).warnings
    said = "reconstruct-validation: 1 of the files are of earlier weights and not shown; renew them: python"
    assert f"{said} -m models reconstruct {runs / 'a'} --split validation" in words
    assert main(command) == 0
    assert titles() == {"reconstruct-test/side_by_side.png"}, "those of images are of earlier weights still"
    counted: list[object] = []
    monkeypatch.setattr(
        "models.report.contents.hashes_now", lambda run: counted.append(run) or hashes_now(run)
    )
    titles()
    assert counted == [runs / "a"]


def test_pictures_in_folders_of_any_name_are_noted_too(runs: Path, tmp_path: Path) -> None:
    run = runs / "a"
    (tmp_path / "elsewhere").mkdir()
    (run / "reconstruct-validation").symlink_to(tmp_path / "elsewhere")
    command = ["reconstruct", str(run), "--count", "4"]
    assert main([*command, "--split", "validation"]) == 0
    for name in ("reconstruct-mine", "reconstruct-test/again"):
        assert main([*command, "--out", str(run / name)]) == 0
    assert len(run_section(RunLayout(run)).pictures) == 3
    replace_weights(run)
    section = run_section(RunLayout(run))
    assert not section.pictures
    for flags in (
        f"--out {run}/reconstruct-mine",
        f"--out {run}/reconstruct-test/again",
        "--split validation",
    ):
        assert any(words.endswith(f"models reconstruct {run} {flags}") for words in section.warnings)


def test_a_damaged_note_is_said_before_the_work(runs: Path, capsys) -> None:
    command = ["reconstruct", str(runs / "a"), "--count", "4"]
    assert main(command) == 0
    folder = RunLayout(runs / "a").reconstruct("test")
    record, picture = RunLayout.made_of(folder), folder / "side_by_side.png"
    for damage in ('{"made": 3}', record.read_text().replace('["side_by_side.png"]', "null")):
        record.write_text(damage)
        picture.unlink(missing_ok=True)
        capsys.readouterr()
        assert main(command) == 2
        assert f"{record} does not say of what the files beside it are; remove it" in capsys.readouterr().err
        assert not picture.exists()


def test_samples_are_of_the_prior_and_of_its_decoder(runs: Path) -> None:
    def pictures() -> list[str]:
        section = run_section(RunLayout(runs / "p"))
        return [picture.title for picture in section.pictures]

    TrainConfig(name="p", runs=str(runs)).save(runs / "p" / "config.yaml")
    sample = ["sample", str(runs / "p"), "--count", "1", "--model", str(runs / "a")]
    assert main(sample) == 0
    assert pictures() == ["samples/samples.png"]
    level = runs / "p" / "level0" / "model.safetensors"
    whole = level.read_bytes()
    level.write_bytes(whole[:-4] + b"\0\0\0\x3f")
    assert not pictures()
    level.write_bytes(whole)
    assert pictures()
    replace_weights(runs / "a")
    assert not pictures()
    (runs / "p" / "samples" / "made_of.json").unlink()
    assert pictures(), "of which nothing is noted"
