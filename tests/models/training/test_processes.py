"""Which process this is, by the variables of torchrun and of SLURM."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from training_support import histories

from models.training.processes import torchrun_variables

JOB = {"SLURM_JOB_ID": "71234", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "gpu[07-08]"}


def test_tasks_of_srun_are_processes_of_one_run() -> None:
    step = JOB | {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
    assert torchrun_variables(step) == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "16234",
    }
    assert torchrun_variables(step | {"MASTER_PORT": "9"})["MASTER_PORT"] == "9"


@pytest.mark.parametrize(
    "more",
    [{}, {"SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"}, {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}],
    ids=["shell_of_salloc", "batch_script", "srun_of_one_task"],
)
def test_what_srun_has_not_started_in_several_tasks_runs_alone(more: dict[str, str]) -> None:
    assert torchrun_variables(JOB | more) == {}


def test_torchrun_inside_an_allocation_counts() -> None:
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert torchrun_variables(JOB | {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0"} | torchrun) == torchrun


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_NTASKS": "many"}, "SLURM_NTASKS is 'many'; accepted: a number of at least 1"),
        ({"SLURM_NTASKS": "3"}, "SLURM_NTASKS is 3; accepted: equally many tasks on each of 2 nodes"),
    ],
)
def test_variables_that_make_no_sense_are_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchrun_variables(JOB | {"SLURM_PROCID": "0"} | change)


def free_port() -> str:
    """One below those that the system gives to connections, so that none takes it before it is used."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return str(port)
    raise AssertionError("no port is free")


@pytest.mark.slow
def test_training_inside_an_allocation(tmp_path: Path) -> None:
    """One task ends like no allocation, and two tasks on this machine end like two processes of torchrun."""
    root = Path(__file__).parents[3]
    port = free_port()

    def start(name: str, batch_size: int, tasks: int, task: int) -> subprocess.Popen[str]:
        flags = ["--runs", str(tmp_path), "--name", name, "--batch-size", str(batch_size), "--limit", "256"]
        flags += ["--downscale", "2", "--hidden", "8", "--epochs", "2", "--log-every", "1"]
        flags += ["--pictures-every", "0", "--no-progress", "--accelerator", "cpu"]
        allocation = {
            "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1", "SLURM_NTASKS": str(tasks),
            "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(task),
            "SLURM_LOCALID": str(task), "MASTER_PORT": port,
        }  # fmt: skip
        variables = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.Popen(
            [sys.executable, "-m", "models", "train", *flags],
            env=os.environ | variables | (allocation if tasks else {}),
            cwd=root, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    runs = [start("alone", 64, 0, 0), start("one", 64, 1, 0)]
    runs += [start("two", 32, 2, task) for task in range(2)]
    for run in runs:
        _, error = run.communicate(timeout=800)
        assert run.returncode == 0, error[-3000:]
    alone, one, two = histories(tmp_path / "alone", tmp_path / "one", tmp_path / "two")
    assert alone == one
    assert len(two["train/loss"][0]) == 8, "two tasks of half the batch size do as many steps"
