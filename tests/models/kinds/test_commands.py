"""Every command on sounds with classes, and on volumes without: from a folder to samples and figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from kinds_support import RATE, TINY, write_sounds, write_volumes
from PIL import Image

from models.cli import main
from models.runs.history import read_history

QUICK = ["--no-progress", "--accelerator", "cpu", "--batch-size", "8", "--lr", "3e-3", "--epochs", "2"]


def flags(settings: dict[str, object]) -> list[str]:
    return [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module", params=["audio", "volume"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data in ``set`` and a trained run with two levels of codes in ``runs/RUN``."""
    place = tmp_path_factory.mktemp(request.param)
    make = write_sounds if request.param == "audio" else write_volumes
    make(place / "set", **({"count": 10} if request.param == "audio" else {"count": 16}))
    train = ["train", "--data", str(place / "set"), "--runs", str(place / "runs"), "--name", request.param]
    train += ["--model", "vqvae2", "--downscales", "4,2" if request.param == "audio" else "2,2", *QUICK]
    assert main([*train, *flags(TINY), "--kmeans-init"]) == 0
    return place / "runs" / request.param


def is_audio(run: Path) -> bool:
    return run.name == "audio"


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_training_leaves_pictures_curves_and_a_history(run: Path) -> None:
    history = read_history(run)
    figures = ["si_sdr", "log_mel_distance"] if is_audio(run) else ["ssim", "inner_ssim"]
    assert {f"validation/{name}" for name in figures} <= set(history)
    assert ("validation/ssim" in history) == (not is_audio(run))
    assert json.loads((run / "data.json").read_text())["settings"]["kind"] == run.name
    assert json.loads((run / "model" / "config.json").read_text())["arguments"]["ndim"] == (
        1 if is_audio(run) else 3
    )
    with Image.open(run / "reconstructions" / "epoch_0002.png") as picture:
        assert picture.mode == ("RGB" if is_audio(run) else "L")
    assert (run / "curves.png").is_file()


def test_evaluate_reconstruct_and_export(run: Path, tmp_path: Path, capsys) -> None:
    assert main(["evaluate", str(run)]) == 0
    figures = json.loads((run / "evaluation-test.json").read_text())
    assert "rfid" not in figures
    assert (figures["bits_decoder"] > 11) == is_audio(run), "of 65,536 levels, or of 256"
    assert main(["evaluate", str(run), "--fid-weights", "x.pt"]) == 2
    assert "rFID is of images" in capsys.readouterr().err
    suffix, items = (".wav", "sounds") if is_audio(run) else (".npy", "volumes")
    out = tmp_path / "out"
    assert main(["reconstruct", str(run), "--count", "2", "--images", "--out", str(out)]) == 0
    assert files_in(out) == sorted(["originals", "reconstructions", "side_by_side.png", items])
    assert files_in(out / "originals") == [f"000000{suffix}", f"000001{suffix}"]
    reconstructed = files_in(out / items)
    assert len(reconstructed) > 2
    assert reconstructed[:2] == files_in(out / "reconstructions")
    if is_audio(run):
        originals = {soundfile.read(path)[0].tobytes() for path in (run.parents[1] / "set").rglob("*.wav")}
        assert soundfile.read(out / "originals" / "000000.wav")[0].tobytes() in originals
    assert main(["export", str(run), "--checkpoint", "last", "--out", str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "config.json").is_file()


def test_codes_priors_and_samples(run: Path, tmp_path: Path, capsys) -> None:
    codes, prior = str(tmp_path / "codes"), tmp_path / "prior"
    assert main(["encode", str(run), "--out", codes]) == 0
    described = json.loads((tmp_path / "codes" / "codes.json").read_text())
    assert described["shapes"] == ([[64], [128]] if is_audio(run) else [[2, 2, 2], [4, 4, 4]])
    train = ["train-prior", "--codes", codes, "--runs", str(tmp_path), "--name", "prior", *QUICK]
    assert main([*train, "--width", "8", "--layers", "1", "--heads", "2"]) == 0
    capsys.readouterr()
    sample = ["sample", str(prior), "--count", "3", "--model", str(run)]
    if is_audio(run):
        assert main([*sample, "--classes", "low", "--judge", str(run.parents[1] / "set")]) == 0
        assert "of the samples for the class asked for" in capsys.readouterr().out
        assert files_in(prior / "samples" / "sounds") == [f"{number:06d}-low.wav" for number in range(3)]
        info = soundfile.info(prior / "samples" / "sounds" / "000000-low.wav")
        assert (info.frames, info.samplerate) == (512, RATE)
    else:
        assert main([*sample, "--classes", "low"]) == 2
        assert "trained without labels" in capsys.readouterr().err
        assert main(sample) == 0
        assert files_in(prior / "samples" / "volumes") == [f"{number:06d}.npy" for number in range(3)]
        assert np.load(prior / "samples" / "volumes" / "000000.npy").shape == (8, 8, 8)
    assert (prior / "samples" / "samples.png").is_file()
    assert main(["evaluate", str(run), "--prior", str(prior), "--out", str(tmp_path / "bits.json")]) == 0
    assert "bits_per_dim" in json.loads((tmp_path / "bits.json").read_text())


def test_samples_are_chosen_and_measured(run: Path, tmp_path: Path, capsys) -> None:
    codes, prior = str(tmp_path / "codes"), tmp_path / "prior"
    assert main(["encode", str(run), "--out", codes]) == 0
    train = ["train-prior", "--codes", codes, "--runs", str(tmp_path), "--name", "prior", *QUICK]
    assert main([*train, "--width", "8", "--layers", "1", "--heads", "2"]) == 0
    sample = ["sample", str(prior), "--count", "4", "--model", str(run)]
    sample += ["--classes", "low"] if is_audio(run) else []
    assert main([*sample, "--reject", "2", "--two-sample", "--neighbours"]) == 0
    figures = json.loads((prior / "samples" / "figures.json").read_text())
    assert set(figures["plain"]) == {"two_sample"}
    assert set(figures["kept"]) == {"two_sample", "two_sample_before_rejection"}
    item = "sound" if is_audio(run) else "volume"
    errors = figures[f"squared error to the nearest training {item}"]
    assert set(errors) == {"samples", f"held-out {item}s"}
    assert 0 <= errors["samples"]["least"] <= errors["samples"]["median"] < 1
    with Image.open(prior / "samples" / "neighbours.png") as picture:
        assert picture.width > 100
    if is_audio(run):
        capsys.readouterr()
        assert main([*sample, "--judge", str(run.parents[1] / "set"), "--judge-model", "cnn"]) == 2
        assert "judge is 'cnn'; accepted for sounds: 'svm'" in capsys.readouterr().err


def test_what_is_of_images_alone_is_refused(run: Path, tmp_path: Path, capsys) -> None:
    train = ["train", "--data", str(run.parents[1] / "set"), "--runs", str(tmp_path), *QUICK]
    items, own = ("sounds", "length, rate, ") if is_audio(run) else ("volumes", "size, value_range")
    for flag, named in ((["--crop", "0.5"], r"crop is 0.5"), (["--orient"], "orient is True")):
        assert main([*train, *flag]) == 2
        error = capsys.readouterr().err
        assert f"{named}, but the data are {items}, whose form is set by {own}" in error
    assert main([*train, "--shift", "0.1"]) == 2
    augmented = f"shift is 0.1, but the data are {items}, which are not augmented; leave it out"
    assert augmented in capsys.readouterr().err
    assert main(["encode", str(run), "--copies", "2", "--shift", "0.1", "--out", str(tmp_path / "c")]) == 2
    assert augmented in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    assert main([*train, "--decoder", "autoregressive", "--downscale", "2"]) == 2
    assert "accepted: 2 with decoder 'autoregressive'" in capsys.readouterr().err


def test_convolutional_priors_take_sequences_and_say_that_they_take_no_volumes(
    run: Path, tmp_path: Path, capsys
) -> None:
    codes = str(tmp_path / "codes")
    assert main(["encode", str(run), "--out", codes]) == 0
    for prior in ("pixelcnn", "pixelsnail"):
        train = ["train-prior", "--codes", codes, "--runs", str(tmp_path), "--name", prior, "--prior", prior]
        train += ["--width", "8", "--layers", "1", "--steps", "1", *QUICK]
        status = main(train)
        if is_audio(run):
            assert status == 0
            assert main(["sample", str(tmp_path / prior), "--count", "1", "--model", str(run)]) == 0
        else:
            assert status == 2
            assert "accepted for code maps of shape (2, 2, 2): 'transformer'" in capsys.readouterr().err


def test_dry_run_resume_sweep_and_compare(run: Path, tmp_path: Path, capsys) -> None:
    data = ["--data", str(run.parents[1] / "set"), "--runs", str(tmp_path), *QUICK, *flags(TINY)]
    assert main(["train", *data, "--downscale", "2", "--steps", "4", "--dry-run"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert main(["train", *data, "--name", "long", "--downscale", "2", "--steps", "1"]) == 0
    assert main(["train", "--name", "long", "--runs", str(tmp_path), "--resume", "--steps", "2"]) == 0
    figure = "log_mel_distance" if is_audio(run) else "ssim"
    sweep = ["sweep", *data, "--name", "study", "--downscale", "2", "--steps", "2"]
    sweep += ["--grid", "beta=0.25,1", "--by", figure]
    assert main(sweep) == 0
    with open(tmp_path / "study" / "sweep.csv") as file:
        header, first, second = (line.strip().split(",") for line in file)
    values = [float(row[header.index(figure)]) for row in (first, second)]
    assert values == sorted(values, reverse=not is_audio(run)), "the better one first"
    runs = [str(path.parent) for path in sorted((tmp_path / "study").glob("*/config.yaml"))]
    assert main(["compare", *runs, "--out", str(tmp_path / "compare")]) == 0
    assert f"best validation {figure}" in (tmp_path / "compare" / "figures.md").read_text()


def test_a_vae_of_every_kind_samples_and_interpolates(run: Path, tmp_path: Path) -> None:
    train = ["train", "--data", str(run.parents[1] / "set"), "--runs", str(tmp_path), "--name", "vae", *QUICK]
    assert main([*train, "--model", "vae", "--channels-vae", "4,4", "--latent-dim", "3"]) == 0
    assert main(["sample", str(tmp_path / "vae"), "--count", "2", "--interpolate", "1"]) == 0
    samples = tmp_path / "vae" / "samples"
    suffix, items = (".wav", "sounds") if is_audio(run) else (".npy", "volumes")
    assert files_in(samples) == sorted(
        ["interpolation.png", "latents.npz", "made_of.json", "samples.png", items]
    )
    assert files_in(samples / items) == [f"000000{suffix}", f"000001{suffix}"]


def test_data_of_another_kind_are_refused(run: Path, tmp_path: Path, capsys) -> None:
    assert main(["evaluate", str(run), "--data", "digits", "--out", str(tmp_path / "x.json")]) == 2
    assert "digits holds images, of 2 axes and 256 levels; accepted: data of" in capsys.readouterr().err
    train = ["train", "--data", str(run.parents[1] / "set"), "--runs", str(tmp_path), *QUICK]
    assert main([*train, "--downscale", "32", "--model", "vqvae"]) == (0 if is_audio(run) else 2)
    if is_audio(run):
        assert main([*train, "--name", "b", "--likelihood", "categorical"]) == 2
        assert "likelihood is 'categorical'; accepted: 'mse', 'gaussian', 'log" in capsys.readouterr().err
    else:
        assert "the size of " in (error := capsys.readouterr().err)
        assert "is 8x8x8; accepted: a multiple of 32 along every axis" in error
