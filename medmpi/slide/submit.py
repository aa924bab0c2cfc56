"""Array jobs for Slurm, SGE and PBS that do a run's open items without MPI (S4-16 to S4-18, S4-38).

S4's hierarchical scaling: ``submit.sh`` is the master, which launches one array job after another, each within the
scheduler's limit of tasks; when all have ended, a last job stitches, or says what is missing. Tasks are independent:
what fails or is killed is found open by the next ``medmpi slide submit``, which lists only that.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmpi.files import replacing
from medmpi.slide.manifest import Item

SCHEDULERS = ("slurm", "sge", "pbs")
LIMITS = {"slurm": 1000, "sge": 75000, "pbs": 10000}  # tasks of one array, as these come configured


@dataclass(frozen=True)
class Resources:
    """What a task gets: cores, memory (MiB), time (HH:MM:SS), queue, and lines for the script's head as they are.

    ``max_tasks`` limits an array, ``max_running`` the tasks at once; S4 ran 7 cores a group, 4,000 cores in all.
    """

    cores: int = 4
    memory: int = 4096
    time: str = "04:00:00"
    queue: str | None = None
    extra: tuple[str, ...] = ()
    max_tasks: int | None = None
    max_running: int | None = None
    per_task: int = 1


def write_scripts(
    run: Path, items: Sequence[Item], scheduler: str, resources: Resources, *, python: str = sys.executable
) -> Path:
    """Writes ``submit/NNN/`` with the list of items, the array scripts and ``submit.sh``, whose path it returns."""
    if scheduler not in SCHEDULERS:
        raise ValueError(f"submit: scheduler is {scheduler!r}, expected one of {', '.join(SCHEDULERS)}")
    limit = resources.max_tasks or LIMITS[scheduler]
    if min(limit, resources.per_task, resources.cores, resources.memory) < 1:
        raise ValueError("submit: expected limits, items a task, cores and memory above 0")
    run = run.resolve()
    parent = run / "submit"
    parent.mkdir(parents=True, exist_ok=True)
    (run / "logs").mkdir(exist_ok=True)
    number = 1 + max((int(p.name) for p in parent.iterdir() if p.name.isdecimal()), default=0)
    folder = parent / f"{number:03d}"
    folder.mkdir()
    _write(folder / "items.txt", "".join(f"{item.index}\n" for item in items))
    tasks = -(-len(items) // resources.per_task)
    job = f"medmpi-{re.sub(r'[^A-Za-z0-9._-]', '_', run.name)}-{number}"
    names = []
    for k, first in enumerate(range(0, tasks, limit)):
        count = min(limit, tasks - first)
        body = (
            f"{_command(python)} task {shlex.quote(str(run))} --list {shlex.quote(str(folder / 'items.txt'))}"
            f' --task "$(({first} + {_INDEX[scheduler]}))" --per-task {resources.per_task}'
        )
        names.append(f"array-{k:03d}.sh")
        name = f"{job}-{k}"
        _write(folder / names[-1], _script(scheduler, name, resources, run, _array(scheduler, count, resources), body))
    stitch = f"{_command(python)} stitch {shlex.quote(str(run))}"
    _write(folder / "stitch.sh", _script(scheduler, f"{job}-stitch", resources, run, [], stitch))
    _write(folder / "submit.sh", _master(scheduler, folder, names, job))
    return folder / "submit.sh"


# From the scheduler's number of a task to one from 0. PBS Pro refuses arrays of one task, so they are plain jobs there.
_INDEX = {
    "slurm": "SLURM_ARRAY_TASK_ID",
    "sge": "SGE_TASK_ID - 1",
    "pbs": "${PBS_ARRAY_INDEX:-${PBS_ARRAYID:-0}}",
}


def _command(python: str) -> str:
    return f"exec {shlex.quote(python)} -m medmpi.cli slide"


def _array(scheduler: str, count: int, resources: Resources) -> list[str]:
    limit = resources.max_running
    if scheduler == "slurm":
        return [f"#SBATCH --array=0-{count - 1}" + (f"%{limit}" if limit else "")]
    if scheduler == "sge":
        return [f"#$ -t 1-{count}", *([f"#$ -tc {limit}"] if limit else [])]
    return [f"#PBS -J 0-{count - 1}" + (f"%{limit}" if limit else "")] if count > 1 else []


def _script(scheduler: str, name: str, resources: Resources, run: Path, array: list[str], body: str) -> str:
    r, logs = resources, run / "logs"
    if scheduler == "slurm":
        log = f"{name}-%A_%a.out" if array else f"{name}-%j.out"
        head = [
            f"#SBATCH --job-name={name}", "#SBATCH --nodes=1", "#SBATCH --ntasks=1",
            f"#SBATCH --cpus-per-task={r.cores}", f"#SBATCH --mem={r.memory}M", f"#SBATCH --time={r.time}",
            "#SBATCH --requeue", "#SBATCH --open-mode=append",
            f"#SBATCH --output={logs / log}", *([f"#SBATCH --partition={r.queue}"] if r.queue else []),
        ]  # fmt: skip
    elif scheduler == "sge":
        head = [
            f"#$ -N {name}", "#$ -S /bin/bash", "#$ -cwd", "#$ -j y", "#$ -r y", f"#$ -o {logs}",
            f"#$ -pe smp {r.cores}", f"#$ -l h_vmem={-(-r.memory // r.cores)}M", f"#$ -l h_rt={r.time}",
            *([f"#$ -q {r.queue}"] if r.queue else []),
        ]  # fmt: skip
    else:
        head = [
            f"#PBS -N {name[:15]}", "#PBS -j oe", "#PBS -r y", f"#PBS -o {logs}/",
            f"#PBS -l select=1:ncpus={r.cores}:mem={r.memory}mb", f"#PBS -l walltime={r.time}",
            *([f"#PBS -q {r.queue}"] if r.queue else []),
        ]  # fmt: skip
    environment = [f"export OMP_NUM_THREADS={r.cores} OPENBLAS_NUM_THREADS=1"]
    return "\n".join(["#!/bin/bash", *head, *array, *r.extra, *environment, body, ""])


def _master(scheduler: str, folder: Path, names: Sequence[str], job: str) -> str:
    """Submits the arrays, then the stitching behind them all. It stops at the first refusal."""
    lines = ["#!/bin/bash", "set -euo pipefail", f"cd {shlex.quote(str(folder))}", "ids=()"]
    for k, name in enumerate(names):
        if scheduler == "slurm":
            lines.append(f'ids+=("$(sbatch --parsable {name} | cut -d";" -f1)")')
        elif scheduler == "sge":
            lines.append(f"qsub {name}")
            lines.append(f"ids+=({job}-{k})")
        else:
            lines.append(f'ids+=("$(qsub {name})")')
    if scheduler == "slurm":
        lines.append('sbatch --dependency="afterany$(printf ":%s" "${ids[@]}")" stitch.sh')
    elif scheduler == "sge":
        lines.append('qsub -hold_jid "$(IFS=,; echo "${ids[*]}")" stitch.sh')
    else:
        lines.append('qsub -W depend="afterany$(printf ":%s" "${ids[@]}")" stitch.sh')
    lines.append('echo "submitted ${#ids[@]} array jobs: ${ids[*]}"')
    return "\n".join([*lines, ""])


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        if path.suffix == ".sh":
            temporary.chmod(0o755)
