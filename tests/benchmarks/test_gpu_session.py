"""The sessions for a CUDA machine: rehearsed here as they are, and what happens when a part goes wrong."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import session as gpu_session
from benchmarks.gpu import supervised
from benchmarks.gpu.schedule import BUILD, FILES, SESSIONS, Part, Stage
from benchmarks.gpu.session import FAILED, PASSED, SKIPPED, Session
from benchmarks.gpu.supervised import LONGEST_LOG, Running
from benchmarks.gpu.target import Target
from benchmarks.machine import ROOT

START_S = 120.0  # of a machine that is at hand for 15 minutes; everything in between counts as well


# --- the plan -------------------------------------------------------------------------------------


def seconds(*numbers: int) -> float:
    """The longest that a command may take: the build runs beside the stages that do not need it."""
    stages = [stage for number in numbers for stage in SESSIONS[number]]
    beside = sum(stage.limit for stage in stages if stage.beside_build)
    return max(beside, BUILD.limit) + sum(stage.limit for stage in stages if not stage.beside_build)


def names(number: int) -> list[str]:
    return [part.name for stage in SESSIONS[number] for part in stage.parts]


def test_two_starts_fit_into_a_quarter_of_an_hour() -> None:
    assert seconds(2, 3) < gpu_session.SECONDS < 600
    assert seconds(1) + seconds(2, 3) + 2 * START_S <= 900


@pytest.mark.parametrize("numbers", [(1,), (2, 3)])
def test_a_command_leaves_few_flat_files(numbers: tuple[int, ...]) -> None:
    assert len({name for number in numbers for name in FILES[number]}) <= 8


def test_exactness_comes_before_anything_is_timed() -> None:
    assert names(1) == ["facts", "compile", "exactness"]
    timed = {"roofs", "tune", "search", "layer", "equal codes"}
    assert timed <= set(names(3))
    assert all(len(stage.parts) == 1 for stage in SESSIONS[3]), "nothing runs beside what is timed"
    assert not any(stage.beside_build for stage in SESSIONS[3])


# --- rehearsals -----------------------------------------------------------------------------------


def changed_files() -> str:
    """Tracked files that differ and untracked ones that are not ignored."""
    command = ["git", "-C", str(ROOT), "status", "--porcelain"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", SESSIONS)
def test_rehearsal(number: int, tmp_path: Path) -> None:
    """Every part of a session passes without a GPU, and the checkout stays as it was."""
    before, native = changed_files(), sorted((ROOT / "vq_kernels").glob("_C*"))
    stamps = [path.stat().st_mtime_ns for path in native]
    out = tmp_path / "results"
    command = ["bash", str(ROOT / "benchmarks/gpu/session.sh"), str(number), "--rehearse", "--out", str(out)]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=800)
    log = (out / gpu_session.LOG).read_text()
    assert done.returncode == 0, done.stdout + log[-3000:]
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES[number])
    records = json.loads((out / gpu_session.FILE).read_text())["records"]
    assert {r["status"] for r in records} == {PASSED}
    assert [r["part"] for r in records if r["part"] != "build"] == names(number)
    shown = done.stdout.strip().splitlines()
    assert all(any(line.split()[1:2] == r["part"].split()[:1] for line in shown) for r in records)
    assert shown[-1] == f"in {out}", "the table comes last"
    if (ROOT / ".git").exists():
        assert changed_files() == before
    assert [path.stat().st_mtime_ns for path in native] == stamps


# --- what goes wrong ------------------------------------------------------------------------------


def python(program: str, limit: float = 150.0, name: str = "part") -> Part:
    return Part(name, limit, ("-c", program), is_program=False)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that runs made-up parts as session 1 after a build, and returns the session."""

    def run(*parts: Part | Stage, build: str = "print('built')", limit: float = 250.0) -> Session:
        stages = [part if isinstance(part, Stage) else Stage((part,)) for part in parts]
        monkeypatch.setattr(gpu_session, "SESSIONS", {1: stages})
        monkeypatch.setattr(gpu_session, "REHEARSAL_BUILD", python(build, name="build"))
        monkeypatch.setattr(
            Target, "choose", lambda self, real, tiny: tiny if isinstance(tiny, Part) else real
        )
        session = Session(Target("cpu"), tmp_path / "out", dict(os.environ), limit)
        session.run([1], tmp_path)
        return session

    return run


def test_every_end_of_a_part_is_a_line(run, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Running.wait

    def once_said(self: Running, seconds: float) -> int | None:
        while seconds < 10 and "half way" not in self.output():  # however long Python takes to start
            time.sleep(0.01)
        return wait(self, seconds)

    monkeypatch.setattr(Running, "wait", once_said)
    session = run(
        python("print('fine'); print()"),
        python("print('2 of 3 right'); raise SystemExit(1)"),
        python("print('half way', flush=True); import time; time.sleep(60)", limit=5.5),
        python("import os; print('begun', flush=True); os.abort()"),
        python("print('and on')"),
    )
    lines = [(r.part, r.status, r.detail) for r in session.records]
    assert lines == [
        ("build", PASSED, "built"),
        ("part", PASSED, "fine"),
        ("part", FAILED, "2 of 3 right"),
        ("part", FAILED, "stopped after 6 s; last said: half way"),
        ("part", FAILED, f"exit status {-signal.SIGABRT}; last said: begun"),
        ("part", PASSED, "and on"),
    ]
    saved = json.loads((session.out / gpu_session.FILE).read_text())
    assert [r["detail"] for r in saved["records"]] == [r.detail for r in session.records]
    assert {"machine", "versions", "commit", "date"} <= saved.keys()
    table = gpu_session.table(session.records).splitlines()
    assert table[3].split() == [
        "1",
        "part",
        "FAILED",
        f"{session.records[2].seconds:.1f}",
        "2",
        "of",
        "3",
        "right",
    ]


def test_nothing_begins_when_the_time_is_over(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session, the build and the first part begin at once, the next part less than 5 s before the end."""
    clock = itertools.chain([0.0, 0.0, 0.0], itertools.repeat(245.1))
    monkeypatch.setattr(gpu_session, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    session = run(python("print('in time')"), python("print('late')"), limit=250.0)
    assert [(r.status, r.detail) for r in session.records] == [
        (PASSED, "built"),
        (PASSED, "in time"),
        (SKIPPED, "no time left"),
    ]


def test_the_build_runs_beside_what_does_not_need_it(run, tmp_path: Path) -> None:
    """Two parts of a stage and the build wait for each other; what needs the build comes after it."""

    def meet(mine: str, other: str) -> str:
        wait = f"while not (folder / {other!r}).exists(): time.sleep(0.01)"
        folder = f"folder = pathlib.Path({str(tmp_path)!r})"
        return f"import pathlib, time\n{folder}\n(folder / {mine!r}).touch()\n{wait}\nprint({mine!r})"

    together = Stage(
        (python(meet("one", "built"), name="first"), python(meet("two", "one"), name="second")),
        beside_build=True,
    )
    session = run(together, python("print('three')", name="third"), build=meet("built", "two"))
    assert [(r.part, r.status) for r in session.records] == [
        ("build", PASSED),
        ("first", PASSED),
        ("second", PASSED),
        ("third", PASSED),
    ]
    log = (session.out / gpu_session.LOG).read_text()
    assert [line for line in log.splitlines() if line and "=" not in line] == ["built", "one", "two", "three"]


def test_what_a_part_started_ends_with_it(tmp_path: Path) -> None:
    start = "subprocess.Popen(['sleep', '600'], start_new_session=True)"
    program = f"import subprocess; print({start}.pid)"
    running = Running([sys.executable, "-c", program], tmp_path, dict(os.environ), tmp_path / "log")
    assert running.wait(250.0) == 0
    for _ in range(6000):  # the signal to end is sent, and takes a moment
        if is_over(int(running.last_line())):
            return
        time.sleep(0.01)
    pytest.fail("what the part started goes on")


def is_over(pid: int) -> bool:
    """Whether a process, which may be that of nobody who waits for it, has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_signal_while_a_part_is_started_leaves_nothing_behind(run, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    class Signalled(subprocess.Popen):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            started.append(self)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(supervised, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": Signalled}))
    try:
        with pytest.raises(SystemExit), gpu_session.ended_by_signals():
            run(build="import time; time.sleep(250)")
        (build,) = started
        assert build.wait(60) == -signal.SIGKILL
    finally:
        for process in started:
            process.kill()


def test_of_a_long_output_the_end_is_kept(tmp_path: Path) -> None:
    program = "for i in range(300_000): print('line', i)"
    running = Running([sys.executable, "-c", program], tmp_path, dict(os.environ), tmp_path / "log")
    assert running.wait(250.0) == 0
    assert len(running.output()) < LONGEST_LOG + 100
    assert running.output().startswith("[...]\n")
    assert running.last_line() == "line 299999"


def test_a_signal_to_end_prints_what_there_is(tmp_path: Path) -> None:
    program = f"""
import sys
from benchmarks.gpu import session
from benchmarks.gpu.schedule import Part, Stage
part = Part("endless", 250.0, ("-c", "import time; time.sleep(250)"), is_program=False)
build = Part("build", 250.0, ("-c", "print('built')"), is_program=False)
session.SESSIONS.clear()
session.SESSIONS[1] = (Stage((part,)),)
session.REHEARSAL_BUILD = build
sys.exit(session.main(["1", "--rehearse", "--out", {str(tmp_path / "out")!r}]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "session 1: endless\n"
    process.terminate()
    shown, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert shown.splitlines()[2].split() == ["1", "build", "passed", shown.split()[7], "built"]


def test_without_a_gpu_it_says_so_and_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_session.main(["1", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "session.sh needs a CUDA GPU, and torch sees none on this machine.\n"
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        gpu_session.main(["4", "--out", "x"])
    assert "invalid choice: 4" in capsys.readouterr().err
