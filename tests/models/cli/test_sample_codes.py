"""What ``sample`` refuses of the codes of real data that it is given, before it draws anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from run_support import write_prior, write_run

from models import VQVAE, load_data
from models.cli import main
from models.codes.description import DESCRIPTION_FILE
from models.codes.encode import encode
from models.runs.config import TrainConfig

NAMES = [f"{'odd' if digit % 2 else 'even'}+{digit}" for digit in range(10)]


@pytest.fixture
def prior(tmp_path: Path) -> Path:
    """A prior over codes in ``run/codes`` whose classes combine two columns."""
    folder = write_prior(tmp_path / "prior", write_run(tmp_path / "run", limit=30))
    for described in (folder, tmp_path / "run" / "codes"):
        rename_classes(described, NAMES)
    return folder


def rename_classes(folder: Path, names: list[str]) -> None:
    file = folder / DESCRIPTION_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"class_names": names}))


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["sample", str(folder), "--device", "cpu", *arguments]) == 2
    assert not (folder / "samples").exists(), "nothing is left of it"
    return capsys.readouterr().err


def test_classes_are_mixed_as_codes_of_the_same_classes_have_them(
    prior: Path, tmp_path: Path, capsys
) -> None:
    codes = tmp_path / "run" / "codes"
    shutil.copytree(codes, tmp_path / "other" / "codes")
    asked = ["--classes", "even", "--count", "2", "--mix", "training", "--codes"]
    for names, listed in ((NAMES[::-1], "odd+9, even+8"), ([], "none")):
        rename_classes(tmp_path / "other" / "codes", names)
        error = refused([*asked, str(tmp_path / "other" / "codes")], prior, capsys)
        assert f"with the classes {listed}" in error
        assert "accepted with --mix training: those of the prior, even+0, odd+1" in error
    assert main(["sample", str(prior), "--device", "cpu", *asked, str(codes)]) == 0


def test_a_mix_needs_a_name_of_several_classes(prior: Path, tmp_path: Path, capsys) -> None:
    asked = ["--mix", "training", "--codes", str(tmp_path / "run" / "codes")]
    message = "mix is training, where no name stands for several classes; accepted: equal, or --classes"
    assert message in refused([*asked, "--classes", "even+2"], prior, capsys)
    assert message in refused(asked, prior, capsys)
    without_labels = write_prior(
        tmp_path / "plain", write_run(tmp_path / "same", limit=30), conditional=False
    )
    assert message in refused(asked, without_labels, capsys)


def test_real_codes_are_of_the_size_of_the_samples(prior: Path, tmp_path: Path, capsys) -> None:
    config = TrainConfig.load(tmp_path / "run" / "config.yaml").with_values({"size": "16"}, "flags")
    model = VQVAE.from_pretrained(tmp_path / "run" / "model")
    encode(model, load_data(config, stream=True), tmp_path / "large", source=str(tmp_path / "run" / "model"))
    asked = ["--count", "8", "--two-sample", "--codes", str(tmp_path / "large")]
    error = refused(asked, prior, capsys)
    assert "whose codes have the shapes ((8, 8),); accepted: those of the prior, ((4, 4),)" in error


def test_samples_that_no_memory_holds_are_refused_before_the_first_draw(
    prior: Path, capsys, monkeypatch
) -> None:
    flags = ["--classes", "even+0,odd+1", "--count", str(10**12)]
    said = refused(flags, prior, capsys)
    assert f"count is {10**12}, which makes {2 * 10**12} samples of 384 bytes, more than the" in said
    assert said.count("\n") == 1
    for flag in ("--best-of", "--reject"):
        many = refused([*flags[:2], "--count", "2", flag, str(10**12)], prior, capsys)
        assert "accepted: fewer draws for a sample (--best-of, --reject)" in many
    monkeypatch.setattr("models.cli.room.memory", lambda: 384 * 20)
    assert "accepted: up to 10; draw the others with other seeds" in refused(flags, prior, capsys)
    most = int(said.split("up to ")[1].split(";")[0])
    assert 0 < most < 10**12
    assert main(["sample", str(prior), "--device", "cpu", *flags[:2], "--count", "10"]) == 0
