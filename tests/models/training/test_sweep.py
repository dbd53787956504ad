"""Sweeps that go on where they stopped, and runs beside each other."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from models.cli import main
from models.training import autoencoder
from models.training.sweep import case_name, parse_cases

QUICK = ["--hidden", "8", "--residual-hidden", "4", "--embedding-dim", "4", "--codebook-size", "16"]
QUICK += ["--downscale", "2", "--limit", "64", "--batch-size", "32", "--epochs", "2", "--pictures-every", "0"]
QUICK += ["--accelerator", "cpu", "--no-progress", "--log-every", "1"]


def table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as handle:
        return list(csv.DictReader(handle))


def test_grids_and_cases() -> None:
    cases = parse_cases(["beta=0.25,1", "lr=1e-3,1e-4"], ["beta=2 model=vae"])
    assert cases[:2] == [{"beta": 0.25, "lr": 1e-3}, {"beta": 0.25, "lr": 1e-4}]
    assert cases[4:] == [{"beta": 2.0, "model": "vae"}]
    assert [case_name(case) for case in cases[3:]] == ["beta1-lr0.0001", "beta2-modelvae"]
    assert parse_cases(["downscales=4,2;2,2"], []) == [{"downscales": (4, 2)}, {"downscales": (2, 2)}]
    assert case_name({"downscales": (4, 2), "data": "a/b"}) == "downscales4_2-dataa_b"
    for grids, texts, message in (
        ([], [], "a sweep has no cases; accepted: --grid"),
        (["betas=1"], [], "'betas=1': unknown setting 'betas'; did you mean 'beta'?"),
        ([], ["lr=1 betas=1"], "'betas=1': unknown setting 'betas'; did you mean 'beta'?"),
        (["name=a,b"], [], "'name=a,b' sets no setting of train"),
        (["beta"], [], "'beta' sets no setting"),
        (["beta=1,x"], [], "grid: beta is 'x'; accepted: a number"),
        (["beta=1", "beta=2"], [], "beta is in the grid twice"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_cases(grids, texts)


def test_a_sweep_goes_on_and_leaves_one_table_and_one_figure(tmp_path: Path, monkeypatch, capsys) -> None:
    trained: list[tuple[str, dict[str, object]]] = []
    original = autoencoder.train
    stops_at = ["beta1-lr0.001"]

    def train(config, data, **how):
        if config.name in stops_at:
            raise KeyboardInterrupt
        trained.append((config.name, how))
        return original(config, data, **how)

    monkeypatch.setattr(autoencoder, "train", train)
    command = ["sweep", "--runs", str(tmp_path), "--name", "study", *QUICK]
    command += ["--grid", "beta=0.25,1", "--grid", "lr=1e-3,1e-2"]
    assert main(command) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert [name for name, _ in trained] == ["beta0.25-lr0.001", "beta0.25-lr0.01"]
    folder = tmp_path / "study"
    (folder / "beta0.25-lr0.01" / "curves.png").unlink()  # as if it had been stopped
    stops_at.clear()
    trained.clear()
    assert main(command) == 0
    assert [name for name, _ in trained] == ["beta0.25-lr0.01", "beta1-lr0.001", "beta1-lr0.01"]
    assert trained[0][1] == {"resume": True}
    rows = table(folder / "sweep.csv")
    assert {(row["beta"], row["lr"]) for row in rows} == {
        *(("0.25", "0.001"), ("0.25", "0.01"), ("1", "0.001"), ("1", "0.01"))
    }
    errors = [float(row["mse"]) for row in rows]
    assert errors == sorted(errors)
    assert (folder / "sweep.png").is_file()
    assert (folder / "sweep.md").read_text() in capsys.readouterr().out
    trained.clear()
    assert main([*command, "--by", "ssim"]) == 0
    assert trained == []
    similarities = [float(row["ssim"]) for row in table(folder / "sweep.csv")]
    assert similarities == sorted(similarities, reverse=True)
    capsys.readouterr()
    assert main([*command, "--epochs", "3"]) == 2
    assert "epochs is 3, but" in capsys.readouterr().err
    assert trained == []
    assert main([*command, "--case", "model=vae codebook_size=8"]) == 2
    assert "codebook_size means nothing with model vae" in capsys.readouterr().err
    assert main([*command, "--by", "beauty"]) == 2
    assert "by is 'beauty'; accepted: mse, " in capsys.readouterr().err

    out = tmp_path / "comparison"
    runs = [str(folder / name) for name in ("beta0.25-lr0.001", "beta1-lr0.01")]
    assert main(["evaluate", runs[0], "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["compare", *runs, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    settings = {row["setting"]: row for row in table(out / "settings.csv")}
    assert set(settings) == {"beta", "lr"}
    assert (settings["lr"]["beta0.25-lr0.001"], settings["lr"]["beta1-lr0.01"]) == ("0.001", "0.01")
    figures = {row["figure"]: row for row in table(out / "figures.csv")}
    assert float(figures["best validation loss"]["beta1-lr0.01"]) > 0
    assert figures["test mse"]["beta0.25-lr0.001"] != ""
    assert figures["test mse"]["beta1-lr0.01"] == ""
    assert (out / "curves.png").is_file()
    assert "| lr | 0.001 | 0.01 |" in said
    for bad, message in (
        (runs[:1], "runs is of 1 folders; accepted: at least 2"),
        ([runs[0], runs[0]], "twice; accepted: different folders"),
        ([runs[0], str(tmp_path)], "config.yaml does not exist; give the folder of a run"),
        ([runs[0], "nowhere"], "nowhere does not exist"),
    ):
        assert main(["compare", *bad]) == 2
        assert message in capsys.readouterr().err


def test_a_case_that_diverges_leaves_the_others_and_a_table(tmp_path: Path, capsys) -> None:
    command = ["sweep", "--runs", str(tmp_path), "--name", "dv", *QUICK, "--grid"]
    assert main([*command, "lr=1e20,1e-3"]) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert "error: 1 of 2 cases diverged: lr1e+20; take a lower learning rate for them (lr)" in said.err
    assert "lr1e+20 diverged: the training loss became infinite or not a number in step" in said.out
    rows = table(tmp_path / "dv" / "sweep.csv")
    assert [(row["run"], row["lr"], row["state"]) for row in rows] == [
        *(("lr0.001", "0.001", "trained"), ("lr1e+20", "1e+20", "diverged"))
    ]
    assert float(rows[0]["mse"]) > 0
    assert rows[1]["mse"] == ""
    assert (tmp_path / "dv" / "sweep.md").read_text() in said.out
    assert (tmp_path / "dv" / "sweep.png").is_file()
    assert main([*command, "lr=1e20,1e25"]) == 2  # none is left
    assert "2 of 2 cases diverged: lr1e+20, lr1e+25" in capsys.readouterr().err
    assert [row["state"] for row in table(tmp_path / "dv" / "sweep.csv")] == ["diverged"] * 2
    assert not (tmp_path / "dv" / "sweep.png").exists()


def test_other_errors_stop_a_sweep(tmp_path: Path, capsys, monkeypatch) -> None:
    def train(config, data, **how):
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(autoencoder, "train", train)
    assert main(["sweep", "--runs", str(tmp_path), *QUICK, "--grid", "lr=1e-2,1e-3"]) == 2
    assert capsys.readouterr().err == "error: x: No space left on device\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grid", "beta=1,2", "--by", "foo"], "by is 'foo'; accepted: mse, "),
        (["--grid", "beta=1,2", "--by", "rfid"], "by is 'rfid'; accepted: mse, "),
        (
            ["--grid", "downscale=2,16"],
            "case downscale16: the size of digits is 8x8; accepted: a multiple of 16",
        ),
        (["--grid", "init_weights=torch,sonnet", "--init", "nowhere"], "nowhere"),
        (["--grid", "precision=32-true,16-mixed"], "precision is '16-mixed', which needs a GPU"),
        (["--grid", "mirror=false,true", "--case", "limit=32"], "case limit32 sets limit, but all runs of a"),
    ],
)
def test_a_sweep_is_checked_before_anything_is_written(
    tmp_path: Path, capsys, flags: list[str], message: str
) -> None:
    assert main(["sweep", "--runs", str(tmp_path / "runs"), *QUICK, *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "runs").exists()
