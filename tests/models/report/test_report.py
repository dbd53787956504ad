"""The page of runs and studies: whole, self-contained, readable on a phone, and of what is there."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import wave
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.cli import main
from models.evaluation.tables import write_table
from models.report.page import write_report
from models.runs.config import TrainConfig

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "firefox")
ELSEWHERE = ("src", "href", "srcset", "poster", "data", "action", "background", "formaction", "cite")


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.depth: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.depth.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.depth.pop() == tag, f"{tag} closes what it did not open"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def content_of(uri: str | None, kind: str) -> bytes:
    start = f"data:{kind};base64,"
    assert uri is not None
    assert uri.startswith(start)
    return base64.b64decode(uri.removeprefix(start), validate=True)


def write_picture(path: Path, size: tuple[int, int] = (24, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_sound(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        sound.writeframes(np.zeros(800, np.int16).tobytes())


def write_run(folder: Path, **settings: object) -> Path:
    """A run as the commands leave it, without a training."""
    folder.mkdir(parents=True)
    TrainConfig(name=folder.name, runs=str(folder.parent), **settings).save(folder / "config.yaml")
    logs = folder / "logs" / "version_0"
    logs.mkdir(parents=True)
    rows = ["step,validation/loss,validation/perplexity,validation/usage"]
    rows += [f"{step},{1 / (step + 1)},{step + 2},0.125" for step in range(5)]
    (logs / "metrics.csv").write_text("\n".join(rows) + "\n")
    write_picture(folder / "curves.png")
    write_picture(folder / "reconstructions" / "epoch_0001.png")
    write_picture(folder / "reconstructions" / "epoch_0002.png")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "a", lr=0.00123)
    write_picture(folder / "samples" / "grid.png")
    write_sound(folder / "samples" / "first.wav")
    (folder / "warnings.txt").write_text("collapse0: 3 of 512 codes were used <in> epoch 1\n")
    (folder / "evaluation-test.json").write_text(
        json.dumps({"perplexity": 77.125, "usage": 0.25, "mse": 0.01, "of": {}})
    )
    attempt = {
        "began": "2026-01-02T03:04:05+00:00",
        "seconds": 12.5,
        "commit": "c0ffee",
        "processor": "A CPU",
    }
    (folder / "made.json").write_text(json.dumps({"attempts": [attempt]}))
    return folder


def check_self_contained(html: str) -> Page:
    page = Page(html)
    assert not page.depth
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ELSEWHERE:
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), f"{tag} {name} is {value[:60]}"
    assert "url(" not in html
    assert "@import" not in html
    policy = [meta["content"] or "" for meta in page.all("meta") if "http-equiv" in meta]
    assert "default-src 'none'" in policy[0]
    for picture in page.all("img"):
        image = Image.open(io.BytesIO(content_of(picture["src"], "image/png")))
        image.load()
        assert picture["alt"]
    for sound in page.all("audio"):
        assert "controls" in sound
        with wave.open(io.BytesIO(content_of(sound["src"], "audio/wav"))) as opened:
            assert opened.getnframes() > 0
    return page


def test_the_page_of_a_run_has_all_that_is_there(run: Path) -> None:
    page = check_self_contained(write_report([run]).read_text())
    titles = [picture["alt"] for picture in page.all("img")]
    assert titles == ["a/curves.png", "reconstructions/epoch_0002.png", "samples/grid.png"]
    assert len(page.all("audio")) == 1
    for text in (
        "0.00123",
        "77.12",
        "Use of the codes",
        "test split",
        "c0ffee",
        "A CPU",
        "2026-01-02",
        "12.5",
    ):
        assert text in page.text
    assert "3 of 512 codes were used <in> epoch 1" in page.text, "a warning, escaped"


def test_the_page_of_the_same_run_is_the_same(run: Path) -> None:
    first = write_report([run]).read_bytes()
    assert write_report([run]).read_bytes() == first


def test_without_an_evaluation_the_last_validation_says_how_codes_are_used(run: Path) -> None:
    (run / "evaluation-test.json").unlink()
    page = Page(write_report([run]).read_text())
    assert "77.12" not in page.text
    assert "validation split, last of training" in page.text
    assert page.text.index("Use of the codes") < page.text.index("perplexity") < page.text.index("Figures")


def test_it_is_readable_on_a_phone(run: Path) -> None:
    html = write_report([run]).read_text()
    page = Page(html)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "img { max-width: 100%" in html, "a picture is no wider than the screen"
    wide = [place for place, (tag, attributes) in enumerate(page.tags) if attributes.get("class") == "wide"]
    tables = [place for place, (tag, _) in enumerate(page.tags) if tag == "table"]
    assert [place + 1 for place in wide] == tables, "every table scrolls by itself"


def test_the_page_of_a_study_has_its_tables_and_runs(tmp_path: Path, run: Path) -> None:
    rows = [{"model": "a|b", "mse": 0.0123456, "K": 512}, {"model": "<b>", "mse": 1e-7, "K": 1024}]
    write_table(tmp_path, "figures", rows, "Test split.")
    (tmp_path / "study.json").write_text(json.dumps({"study": "likelihood", "scale": "small"}))
    write_picture(tmp_path / "bits.png")
    write_run(tmp_path / "b")
    assert main(["report", str(tmp_path)]) == 0
    page = check_self_contained((tmp_path / "report.html").read_text())
    for text in ("figures", "a|b", "<b>", "0.01235", "1e-07", "512", "Test split.", "likelihood"):
        assert text in page.text
    assert page.all("img")[0]["alt"] == f"{tmp_path.name}/bits.png"
    assert page.text.index("figures") < page.text.index("Runs")
    assert len(page.all("audio")) == 1


def test_runs_are_compared(tmp_path: Path, run: Path) -> None:
    other = write_run(tmp_path / "b", lr=0.5)
    assert main(["report", str(run), str(other), "--out", str(tmp_path / "both.html")]) == 0
    page = check_self_contained((tmp_path / "both.html").read_text())
    assert "0.00123" in page.text
    assert "0.5" in page.text
    assert page.text.count("curves.png") == 3, "of both together and of each"
    assert main(["report", str(run), str(other), "--out", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "both.html").read_bytes()


def test_what_cannot_be_shown_is_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "holds no run, no table and no picture"), ("gone", "does not exist")):
        assert main(["report", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it(tmp_path: Path, run: Path, width: int) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is installed: {', '.join(BROWSERS)}; the page is parsed in the other tests")
    html, picture = write_report([run]).resolve(), tmp_path / "screen.png"
    size = f"--window-size={width},1600"
    options = ["--headless", f"--screenshot={picture}", size, "--no-sandbox", "--disable-gpu"]
    if "firefox" in browser:
        options = ["--headless", "--screenshot", str(picture), size]
    subprocess.run([browser, *options, html.as_uri()], check=True, timeout=120, capture_output=True)
    screen = np.asarray(Image.open(picture).convert("L"))
    assert screen.shape[1] == width
    assert (screen != screen[0, 0]).mean() > 0.01, "the page is not blank"
