"""What a session brings along, what it says about the machine, and how it measures the plain units."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.gpu import clock, packages, rates
from benchmarks.gpu.clock import ClockSampler
from benchmarks.gpu.faults import NotHere
from benchmarks.gpu.packages import Package
from benchmarks.gpu.target import Target

# --- packages -------------------------------------------------------------------------------------


def make_wheel(folder: Path, name: str, content: str) -> None:
    """A wheel of one module."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_every_line_of_the_list_is_understood() -> None:
    listed = packages.read_packages(packages.PACKAGES)
    assert {"flash-kmeans", "flashlib", "vector-quantize-pytorch", "datasets"} <= {
        p.requirement.partition("==")[0] for p in listed
    }
    assert all(re.fullmatch(r"[\w.]+", p.module) for p in listed)


def test_a_line_that_pins_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# words\nflashlib==0.4.0  # flashlib\nflash-kmeans>=0.3\n")
    with pytest.raises(ValueError, match=r"'flash-kmeans>=0\.3'; accepted: NAME==VERSION  # MODULE"):
        packages.read_packages(path)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two wheels, one of which cannot be imported, in place of what is listed."""
    make_wheel(tmp_path, "vq_right", "answer = 42\n")
    make_wheel(tmp_path, "vq_wrong", "import vq_absent\n")
    listed = [Package("vq_right==1.0", "vq_right"), Package("vq_wrong==1.0", "vq_wrong")]
    monkeypatch.setattr(packages, "read_packages", lambda path: listed)
    return tmp_path


def test_packages_are_installed_and_imported(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert packages.main(["--folder", str(two), "--no-download"]) == 1
    said = capsys.readouterr()
    assert re.search(r"vq_right==1.0 +imports", said.out)
    assert said.err == "FAILED vq_wrong==1.0: ModuleNotFoundError: No module named 'vq_absent'\n"


def test_packages_that_are_too_large_or_missing_are_refused(two: Path, capsys) -> None:
    (two / "vq_wrong-1.0-py3-none-any.whl").unlink()
    assert packages.main(["--folder", str(two), "--no-download", "--limit-mib", "0.0001"]) == 1
    said = capsys.readouterr().err
    assert "holds 1 wheels; accepted: 2" in said
    assert "accepted: at most 0.0001" in said


def test_a_module_from_elsewhere_does_not_count(tmp_path: Path) -> None:
    assert packages.import_from("json", tmp_path).startswith("it was imported from ")


# --- unit rates -----------------------------------------------------------------------------------

UNITS = ("FADD", "FFMA", "FMNMX", "VIMNMX", "VIMNMX3", "LOP3", "SEL", "F2FP")


@pytest.fixture(scope="module")
def nvcc() -> str:
    path = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if path is None:
        pytest.skip("nvcc is not installed")
    return path


def test_the_loop_of_each_unit_holds_its_instruction_alone(nvcc: str, tmp_path: Path) -> None:
    """256 of it, and little else: otherwise lanes a clock would be those of something else."""
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("this triton brings no cuobjdump")
    cubin = tmp_path / "rates.cubin"
    command = rates.compile_command(nvcc, cubin, (9, 0))
    assert "-gencode=arch=compute_90a,code=sm_90a" in command
    done = subprocess.run([*command, "-cubin", "-Xptxas", "-v"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"(\d+) bytes spill stores", done.stderr)) == {"0"}
    sass = subprocess.run([str(tool), "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    functions = {}
    for text in sass.split("Function : ")[1:]:
        if unit := re.match(r"\S*run_unitINS_(\d)(\w+)", text):
            name = unit[2][: int(unit[1])].upper()  # mangled: its length comes before it
            names = re.findall(r"/\*[0-9a-f]{4,6}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_]+)", text)
            functions[name] = Counter(names)
    assert set(functions) == set(UNITS)
    for unit, counts in functions.items():
        assert 256 <= counts[unit] <= 262, unit
        others = sum(counts.values()) - counts[unit] - counts["NOP"]
        assert others < 60, counts


def test_rates_that_cannot_be_built_are_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates.shutil, "which", lambda name: None)
    with pytest.raises(NotHere, match="nvcc is not installed"):
        rates.build(tmp_path / "rates", (9, 0))


def make_tool(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_what_the_program_prints_is_read(tmp_path: Path) -> None:
    line = '{"unit": "FADD", "lanes_per_clock": 127.5, "clock_mhz": 1700}'
    tool = make_tool(tmp_path / "rates", f"echo '{line}'")
    assert rates.unit_rates(tool) == [json.loads(line)]
    broken = make_tool(tmp_path / "broken", "echo 'FADD: no kernel image' >&2; exit 1")
    with pytest.raises(RuntimeError, match="rates ended with 1: FADD: no kernel image"):
        rates.unit_rates(broken)


def test_a_failing_roof_is_recorded_and_the_next_goes_on(tmp_path: Path) -> None:
    file = rates.RoofFile(tmp_path, {"machine": {}})

    def fails() -> float:
        raise RuntimeError("CUDA error: no")

    assert file.measure("product", fails) is None
    assert file.measure("copy", lambda: 2.5e12) == 2.5e12
    content = json.loads((tmp_path / rates.FILE).read_text())
    assert content["failures"] == {"product": "RuntimeError: CUDA error: no"}
    assert content["roofs"]["copy"]["per_second"] == 2.5e12
    rates.measure_roofs(file, Target("cpu"))
    assert {"bfloat16 product", "tf32 product", "float32 product", "copy"} == file.content["roofs"].keys()


# --- the clock ------------------------------------------------------------------------------------


def test_clocks_are_sampled_while_something_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = "for c in 1700 1500 1600; do echo \"$c, 650.5, 61\"; done; echo '[N/A], 1, 2'; exec sleep 60"
    make_tool(tmp_path / "nvidia-smi", samples)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    sampler = ClockSampler()
    with sampler:
        while len(sampler._samples) < 3:
            clock.threading.Event().wait(0.01)
    assert sampler.report() == {
        "clock_mhz": 1600.0,
        "lowest_clock_mhz": 1500.0,
        "power_w": 650.5,
        "temperature_c": 61.0,
        "samples": 3,
    }


def test_without_the_drivers_tool_there_is_no_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with ClockSampler() as sampler:
        pass
    assert sampler.report() is None
