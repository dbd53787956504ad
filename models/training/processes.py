"""Which of several processes this one is: started by torchrun, by SLURM's srun, or alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

_STEP = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS", "SLURM_SRUN_COMM_HOST")  # srun sets them


class Processes(NamedTuple):
    """For example, ``Processes(3, 8, 4)`` is the last of four processes on the first of two machines."""

    rank: int
    world: int  # processes in all
    local: int  # processes on this machine


def processes() -> Processes:
    """What torchrun or SLURM says of this process; one alone without them."""
    variables = torchrun_variables(os.environ)
    world = int(variables.get("WORLD_SIZE", "1"))
    local = int(variables.get("LOCAL_WORLD_SIZE", str(world)))
    return Processes(int(variables.get("RANK", "0")), world, local)


def torchrun_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that torchrun sets, from the environment or from what srun has set there.

    Inside an allocation of several tasks only srun starts more than one process: a batch script, or a
    command in a shell of `salloc`, runs alone. Raises ValueError for a variable of SLURM that is no number.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    given = {name: environment[name] for name in names if name in environment}
    world = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
    in_batch_script = environment.get("ENVIRONMENT") == "BATCH" and not any(v in environment for v in _STEP)
    if "WORLD_SIZE" in given or "SLURM_PROCID" not in environment or world == "1" or in_batch_script:
        return given
    nodes = environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES", "1")
    for name, value in (("SLURM_NTASKS", world), ("SLURM_NNODES", nodes)):
        if not value.isdecimal() or int(value) < 1:
            raise ValueError(f"{name} is {value!r}; accepted: a number of at least 1, as SLURM sets it")
    if int(world) % int(nodes):
        raise ValueError(f"SLURM_NTASKS is {world}; accepted: equally many tasks on each of {nodes} nodes")
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "127.0.0.1")
    # The port is the same in all processes of a job, and hardly ever that of another job.
    port = 15_000 + int(environment.get("SLURM_JOB_ID", "0")[-4:])
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": world,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", environment["SLURM_PROCID"]),
        "LOCAL_WORLD_SIZE": str(int(world) // int(nodes)),
        "MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(hosts),
        "MASTER_PORT": str(port),
    } | given


def join_tasks() -> None:
    """Give a task of srun the variables of torchrun, which this package, torch and Lightning read."""
    os.environ.update(torchrun_variables(os.environ))


def cluster_environment() -> ClusterEnvironment:
    """What tells Lightning which process this is; it would take any allocation of SLURM for several tasks."""
    return LightningEnvironment() if processes().world == 1 else TorchElasticEnvironment()


def requeue() -> None:
    """Put this process's SLURM job back into the queue; outside SLURM, or where that fails, say so."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID")
    if job is None:
        print("requeue: this is no SLURM job", file=sys.stderr)
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        message = done.stderr.strip() if done.returncode else f"job {job} is in the queue again"
    except OSError as error:
        message = f"scontrol cannot be run ({error.strerror})"
    print(f"requeue: {message}", file=sys.stderr)
