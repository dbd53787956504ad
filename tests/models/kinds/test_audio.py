"""Sounds: what is read from files, what was done to them and said, what is refused, and their figures."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from data_support import load, write_images
from kinds_support import RATE, tone, write_sounds

from models.data import DataError, to_float
from models.data.kinds import Sounds, to_levels
from models.data.kinds.mel import BANDS, FLOOR, log_mel, log_mel_distance, mel_filters, window_length


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_folder_of_sounds_is_found_by_looking(tmp_path: Path, suffix: str) -> None:
    data = load(write_sounds(tmp_path, suffix=suffix))
    assert data.class_names == ("high", "low")
    assert data.train.batch([0]).dtype == torch.int16
    assert data.train.batch([0, 1]).shape == (2, 1, 512)
    assert "sounds of 512 samples (0.06 s at 8000 Hz), mono (1 channel); 2 classes" in data.describe()
    assert data.settings["kind"] == "audio"
    stored = {path.name: soundfile.read(path, dtype="int16")[0] for path in tmp_path.glob(f"low/*{suffix}")}
    sounds = data.train.batch(range(len(data.train)))[data.train.labels == 1, 0].numpy()
    for sound in sounds:
        assert any(np.array_equal(sound, one) for one in stored.values()), "the samples are those of a file"


def test_sixteen_bits_come_back_from_the_range_of_models() -> None:
    levels = torch.arange(-32768, 32768).to(torch.int16)
    x = to_float(levels)
    assert x.aminmax() == (-0.5, 0.5)
    assert torch.equal(to_levels(x, torch.int16), levels)


def test_lengths_are_cut_or_padded_and_it_is_said(tmp_path: Path) -> None:
    write_sounds(tmp_path, samples=512)
    soundfile.write(tmp_path / "low" / "00.wav", tone(300, 700), RATE)
    soundfile.write(tmp_path / "low" / "01.wav", tone(300, 100), RATE)
    data = load(tmp_path, length=600)
    assert "1 cut to 600 samples; 11 padded with silence to 600 samples" in data.describe()
    every = torch.cat([data.split(name).batch(range(len(data.split(name)))) for name in ("train", "test")])
    every = torch.cat([every, data.validation.batch(range(len(data.validation)))])[:, 0]
    assert (every[:, 512:] == 0).all(1).sum() == 11
    assert (every[:, 100:] == 0).all(1).sum() == 1
    assert load(tmp_path).size == (768,), "the longest sound, rounded up to a multiple of 256"
    for length in (0, -1):
        with pytest.raises(DataError, match=rf"length is {length}; accepted: an integer of at least 1"):
            load(tmp_path, length=length)


def test_other_rates_and_channels_are_errors_until_a_setting_says_what_to_do(tmp_path: Path) -> None:
    write_sounds(tmp_path)
    soundfile.write(tmp_path / "low" / "zz.wav", tone(400, 1024, 2 * RATE), 2 * RATE)
    with pytest.raises(DataError, match=r"samples a second, .*; give a rate \(--rate \d+\) to resample"):
        load(tmp_path, test=0.01, validation=0.01)
    data = load(tmp_path, rate=RATE)
    assert "1 resampled to 8000 Hz" in data.describe()
    form = Sounds(512, 1, RATE)
    resampled = form.decode((tmp_path / "low" / "zz.wav").read_bytes(), "zz") / 32768
    assert np.abs(resampled[0] - tone(400))[20:-20].max() < 0.01, "the same tone at the other rate"
    stereo = np.stack([tone(300), 0 * tone(300)], axis=1)
    soundfile.write(tmp_path / "low" / "zz.wav", stereo, RATE)
    with pytest.raises(DataError, match=r"channels, .*; give channels \(--channels 1 or 2\) to mix"):
        load(tmp_path)
    assert "1 mixed or repeated" in load(tmp_path, channels=1).describe()
    mixed = form.decode((tmp_path / "low" / "zz.wav").read_bytes(), "zz")[0]
    assert np.abs(mixed - (tone(300) * 16384)).max() <= 1
    assert load(tmp_path, channels=2).train.batch([0]).shape == (1, 2, 512)
    with pytest.raises(DataError, match=r"channels of .* is 3; accepted: 1 or 2"):
        load(tmp_path, channels=3)


def _cut(encoded: bytes) -> bytes:
    return encoded[: len(encoded) // 2]


@pytest.mark.parametrize("cache_gb", [1.0, 0.0], ids=["cached", "decoded_on_the_way"])
@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        (
            ".wav",
            _cut,
            r"cannot be read as a sound \(its header promises 1024 bytes of samples, 490 are",
        ),
        (".flac", _cut, r"low/03.flac cannot be read as a sound \(.*flac"),
        (".wav", lambda _: b"", r"low/03.wav cannot be read as a sound"),
        (".wav", lambda _: b"RIFF1234WAVEnothing", r"low/03.wav cannot be read as a sound"),
    ],
    ids=["cut_wav", "cut_flac", "empty", "header"],
)
def test_cut_files_are_named(tmp_path: Path, suffix: str, change, message: str, cache_gb: float) -> None:
    write_sounds(tmp_path, suffix=suffix)
    file = tmp_path / "low" / f"03{suffix}"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=message):
        load(tmp_path, cache_gb=cache_gb)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0), "holds no samples; remove it"),
        (np.array([0.0, np.nan]), "holds samples that are not finite; replace"),
        (np.array([0.0, 1.5]), r"holds samples up to 1.5; accepted: from -1 to 1"),
    ],
    ids=["none", "nan", "loud"],
)
def test_samples_that_are_none_are_refused(tmp_path: Path, samples: np.ndarray, message: str) -> None:
    write_sounds(tmp_path)
    soundfile.write(tmp_path / "low" / "03.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"low/03.wav " + message):
        load(tmp_path, length=512)


def test_settings_of_other_kinds_and_mixed_folders_are_refused(tmp_path: Path) -> None:
    write_sounds(tmp_path)
    with pytest.raises(DataError, match=r"size is 8, but the data are sounds, whose form is set by length"):
        load(tmp_path, size="8")
    write_images(tmp_path / "low", 3)
    with pytest.raises(DataError, match=r"holds 3 images and 12 sounds; say which to take \(--kind image"):
        load(tmp_path)
    data = load(tmp_path, kind="audio")
    assert "3 files that are no sounds by their suffix (.png)" in data.describe()
    with pytest.raises(ValueError, match="kind is 'sound'; accepted"):
        load(tmp_path, kind="sound")


@pytest.mark.parametrize("typed", [True, False], ids=["audio_column", "bytes_and_path"])
def test_parquet_of_sounds(tmp_path: Path, typed: bool) -> None:
    """With and without the schema of Hugging Face datasets; a plain column is told by what is in it."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    write_sounds(tmp_path / "files", suffix=".flac")
    files = sorted((tmp_path / "files").rglob("*.flac"))
    records = [{"bytes": file.read_bytes(), "path": None} for file in files]
    table = pyarrow.table({"recording": records, "label": [file.parent.name for file in files]})
    (tmp_path / "set").mkdir()
    if typed:
        features = datasets.Features(
            {"recording": datasets.Audio(decode=False), "label": datasets.Value("string")}
        )
        table = table.cast(features.arrow_schema)
    pyarrow.parquet.write_table(table, tmp_path / "set" / "train.parquet")
    data = load(tmp_path / "set", cache_dir=str(tmp_path / "cache"))
    assert (data.settings["kind"], data.settings["image_column"]) == ("audio", "recording")
    assert data.class_names == ("high", "low")


def test_log_mel_of_a_tone_peaks_in_its_band_at_its_level() -> None:
    x = torch.from_numpy(tone(1000, 4096, loudness=1.0) / 2).float()[None, None]
    levels = log_mel(x, RATE)
    assert levels.shape == (1, 1, BANDS, 4096 // 64 + 1)
    middle = levels[0, 0, :, 20:40].mean(1)
    centres = 700 * (10 ** (torch.linspace(0, 2595 * math.log10(1 + 4000 / 700), BANDS + 2) / 2595) - 1)[1:-1]
    assert (centres - 1000).abs().argmin() == middle.argmax()
    assert middle.max().item() == pytest.approx(0, abs=3), "full scale, spread over two bands"
    assert (log_mel(torch.zeros(1, 1, 600), RATE) == FLOOR).all()
    quieter = log_mel(0.1 * x, RATE)[0, 0, :, 20:40].mean(1)
    assert (middle - quieter)[middle.argmax()].item() == pytest.approx(20, abs=1e-3)


def test_log_mel_distance_is_its_definition() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(2, 3, 2, 1000) - 0.5
    length = window_length(RATE)
    assert [window_length(rate) for rate in (8000, 16000, 44100)] == [256, 512, 1024]
    window = torch.hann_window(length, dtype=torch.float64)
    filters = mel_filters(RATE, length // 2 + 1, BANDS).double()

    def levels(sound: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(sound.double(), (length // 2, length // 2))
        frames = padded.unfold(-1, length, length // 4) * window  # [..., frames, length]
        power = (2 * torch.fft.rfft(frames).abs() / (window.sum() / 2)).square()
        return (10 * (power @ filters.T).clamp_min(1e-12).log10()).clamp_min(FLOOR)

    expected = (levels(x) - levels(y)).square().mean(-1).sqrt().mean((1, 2))
    torch.testing.assert_close(log_mel_distance(x, y, RATE).double(), expected, rtol=1e-3, atol=1e-3)
    assert (log_mel_distance(x, x, RATE) == 0).all()


def test_mel_filters_cover_every_frequency_between_their_centres_once() -> None:
    filters = mel_filters(16000, 2049, BANDS)
    assert filters.amax(1).min() > 0.9
    covered = filters.sum(0)[filters[0].argmax() + 1 : filters[-1].argmax()]
    torch.testing.assert_close(covered, torch.ones_like(covered))


def test_si_sdr_is_its_definition_and_silence_has_none() -> None:
    torch.manual_seed(0)
    x = 0.2 * torch.randn(3, 1, 800)
    y = x + 0.05 * torch.randn_like(x)
    x[2] = to_float(torch.zeros(1, dtype=torch.int16))
    got = Sounds(800, 1, RATE).measure(x, 3 * y)["si_sdr"]
    for row in range(2):
        target = (y[row] * x[row]).sum() / x[row].square().sum() * x[row]
        expected = 10 * torch.log10(target.square().sum() / (y[row] - target).square().sum())
        assert got[row].item() == pytest.approx(expected.item(), abs=1e-2)
    assert got[2].isnan()


def test_spectrograms_and_files_of_sounds(tmp_path: Path) -> None:
    form = Sounds(2048, 1, RATE)
    x = to_float(torch.from_numpy((tone(500, 2048) * 32767).round()).to(torch.int16)).view(1, 1, -1)
    (picture,) = form.pictures(x)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, BANDS, 33)
    brightest = picture.sum(0)[:, 16].argmax().item()
    assert brightest == BANDS - 1 - log_mel(x, RATE)[0, 0, :, 16].argmax().item(), "low frequencies below"
    assert Sounds(32768, 1, RATE).pictures(torch.zeros(1, 1, 32768)).shape == (1, 3, BANDS, 256)
    form.write_all(x, tmp_path, ["000000-a/b"])
    (file,) = tmp_path.iterdir()
    assert file.name == "000000-a_b.wav"
    info = soundfile.info(file)
    assert (info.samplerate, info.frames, info.subtype) == (RATE, 2048, "PCM_16")
    assert np.array_equal(soundfile.read(file, dtype="int16")[0], (tone(500, 2048) * 32767).round())
    form.write_all(x, tmp_path, ["000001"])
    assert [path.name for path in tmp_path.iterdir()] == ["000001.wav"], "nothing of an earlier call stays"


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sounds(tmp_path)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(DataError, match=r"with soundfile, which is not installed; pip install soundfile"):
        load(tmp_path)


def test_a_wav_file_of_unknown_length_is_whole(tmp_path: Path) -> None:
    """Programs that write to a pipe leave the highest size in the header."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(300), RATE, format="WAV", subtype="PCM_16")
    encoded = bytearray(buffer.getvalue())
    place = encoded.index(b"data") + 4
    encoded[place : place + 4] = b"\xff\xff\xff\xff"
    assert Sounds(512, 1, RATE).decode(bytes(encoded), "piped").shape == (1, 512)
