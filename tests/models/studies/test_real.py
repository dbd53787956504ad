"""The middle scale: its parts and the time that is left, and faces from tables with two columns of labels."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from studies_support import QUICK_PRIOR, SMALLEST

import models.evaluation.classifier as classifier
from models.cli import main
from models.studies import faces, kaokore_vqvae2
from models.studies.catalogue import list_studies
from models.studies.parts import Parts


def test_parts_say_how_long_the_rest_takes_at_the_speed_so_far() -> None:
    said: list[str] = []
    now = [0.0]
    parts = Parts({"there": 10, "first": 4, "second": 6, "last": 10}, said.append, lambda: now[0])
    for name, minutes in (("there", 0.1), ("first", 8), ("second", 12), ("last", 20)):
        parts.begin(name)
        now[0] += 60 * minutes
    assert said == [
        "part 1 of 4, there: 0 minutes so far, about 30 left",
        "part 2 of 4, first: 0 minutes so far, about 20 left",
        "part 3 of 4, second: 8 minutes so far, about 32 left",
        "part 4 of 4, last: 20 minutes so far, about 20 left",
    ]
    with pytest.raises(KeyError, match="other"):
        parts.begin("other")


def test_scales_are_those_that_a_study_has_settings_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_studies()["kaokore-vqvae2"].scales == ("small", "real", "paper")
    for study in list_studies().values():
        assert {"small", "paper"} <= set(study.scales)
    with pytest.raises(SystemExit):
        main(["reproduce", "kaokore-vqvae2", "--scale", "huge"])
    assert "invalid choice: 'huge'" in capsys.readouterr().err


def _table(folder: Path) -> Path:
    """Small pictures with a gender and a status, in the splits that KaoKore has."""
    import datasets

    generator = np.random.default_rng(0)
    names = {"gender": ["male", "female"], "status": ["noble", "warrior"]}
    features = {"image": datasets.Image()}
    features |= {column: datasets.ClassLabel(names=classes) for column, classes in names.items()}
    for split, count in (("train", 64), ("validation", 16), ("test", 16)):
        images = []
        for _ in range(count):
            file = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "PNG")
            images.append({"bytes": file.getvalue(), "path": None})
        rows = {"image": images, "gender": [i % 2 for i in range(count)]}
        rows["status"] = [i // 2 % 2 for i in range(count)]
        table = datasets.Dataset.from_dict(rows, datasets.Features(features))
        table.to_parquet(folder / f"{split}.parquet")
    return folder


def test_faces_of_classes_of_two_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    tiny: dict[str, Any] = {"epochs": 1, "batch_size": 16, "downscales": (2, 2), "precision": "32-true"}
    settings = kaokore_vqvae2.SETTINGS["real"] | SMALLEST | tiny | {"size": "8", "downscale": 2}
    monkeypatch.setattr(kaokore_vqvae2, "SETTINGS", {"real": settings})
    others = {"vqvae, downscale 4": {"model": "vqvae", "downscale": 4}}
    monkeypatch.setattr(kaokore_vqvae2, "OTHERS", {"real": others})
    how = faces.FACES["real"]
    levels = tuple(QUICK_PRIOR | {"batch_size": 16, "width": width} for width in (8, 16))
    how = how | {
        "model": how["model"] | SMALLEST | tiny | {"size": "8", "crop": 0.8},
        "priors": how["priors"] | {"precision": "32-true"},
        "levels": levels,
        "copies": 2,
        "drawing": how["drawing"] | {"best_of": 2, "reject": 2},
        "measured": 3,
        "shown": 2,
    }
    monkeypatch.setattr(faces, "FACES", {"real": how})
    monkeypatch.setattr(kaokore_vqvae2, "FACES", {"real": how})
    monkeypatch.setattr(classifier, "PASSES", 1)
    arguments = ["reproduce", "kaokore-vqvae2", "--scale", "real", "--data", str(_table(tmp_path / "table"))]
    arguments += ["--runs", str(tmp_path), "--seeds", "1", "--accelerator", "cpu"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "part 5 of 5, faces: " in said
    folder = tmp_path / "reproduce-kaokore-vqvae2-real"
    assert {
        *("losses.md", "bits.md", "bits.png", "tsne.png", "tsne-gender.png", "faces.md", "faces-plain.png"),
        *("faces-ranked.png", "faces-kept.png", "faces-neighbours.png"),
    } <= {path.name for path in folder.iterdir()}
    figures = json.loads((folder / "faces.json").read_text())
    assert set(figures["kept"]["judge"]) == set(figures["real test images"]["judge"]) == {"gender", "status"}
    assert set(figures["nats a code"]) == {"top", "bottom"}
    assert set(figures["nats a code"]["top"]) == {"training", "held out", "held out, without labels"}
    with open(folder / "bits.csv", newline="") as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["vqvae, downscale 4", "vqvae", "vqvae2"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert main(arguments) == 0  # what is there is not trained again
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before
