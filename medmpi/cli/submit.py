"""``medmpi submit train ...``: writes a batch script for Slurm, PBS or SGE and hands it in.

The script starts the ranks, lets them write a checkpoint before the time limit (SIGUSR1 ahead of it), and puts the job
back into the queue when they end with exit code 85, so that a run of any length goes through queues of any length.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmpi.parallel.run import find_mpirun

SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "sge": "qsub"}
LAUNCHERS = ("mpirun", "srun-pmi2", "srun-pmix")
_JOB_IDS = ("-$SLURM_JOB_ID", "-$job_id")  # of folders that are named after the job: for the shell to fill in
_TIME = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)$")


class SubmitError(Exception):
    """A setting that cannot be; one line."""


@dataclass(frozen=True)
class Request:
    """What is asked of the scheduler; ``words`` is the command of each rank."""

    words: tuple[str, ...]
    scheduler: str
    name: str
    nodes: int
    ranks: int  # per node
    threads: int
    seconds: int
    launcher: str
    mpirun: str
    exclusive: bool
    early: int  # seconds between the signal and the time limit
    requeues: int
    environment: str  # of SGE
    queue: str
    account: str
    memory: str
    setup: tuple[str, ...]
    extra: tuple[str, ...]


def script(request: Request) -> str:
    """The batch script."""
    head = {"slurm": _slurm, "pbs": _pbs, "sge": _sge}[request.scheduler](request)
    lines = ["#!/bin/bash", *head, "set -u", *request.setup]
    lines += [
        f"export OMP_NUM_THREADS={request.threads} OMP_WAIT_POLICY=passive{_binding(request)}",
        "child=",
        'forward() { [ -n "$child" ] && kill -USR1 "$child"; }  # the ranks save and end with 85',
        "trap forward USR1 TERM",
        f"{_start(request)} &",
        "child=$!",
        'wait "$child"; code=$?',
        'while [ $code -gt 128 ] && kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done',
        *_again(request),
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


def _bound(r: Request) -> bool:
    """Whether every rank gets cores of its own: only then may its threads be bound, or all ranks' share the first."""
    return r.launcher != "mpirun" or r.exclusive


def _binding(r: Request) -> str:
    return " OMP_PROC_BIND=close OMP_PLACES=cores" if _bound(r) else ""


def _slurm(r: Request) -> list[str]:
    lines = [
        f"--job-name={r.name}", f"--nodes={r.nodes}", f"--ntasks-per-node={r.ranks}", f"--cpus-per-task={r.threads}",
        f"--time={_clock(r.seconds)}", f"--signal=B:USR1@{r.early}", "--requeue", "--open-mode=append",
        f"--output={r.name}-%j.out",
    ]  # fmt: skip
    given = (("partition", r.queue), ("account", r.account), ("mem", r.memory))
    lines += [f"--{option}={value}" for option, value in given if value] + ["--exclusive"] * r.exclusive
    return [f"#SBATCH {line}" for line in (*lines, *r.extra)]


def _pbs(r: Request) -> list[str]:
    select = f"select={r.nodes}:ncpus={r.ranks * r.threads}:mpiprocs={r.ranks}:ompthreads={r.threads}"
    select += f":mem={r.memory}" if r.memory else ""
    lines = [
        f"-N {r.name}",
        f"-l {select}",
        *["-l place=excl"] * r.exclusive,
        f"-l walltime={_clock(r.seconds)}",
        "-r y",
        "-j oe",
    ]
    lines += [f"-{option} {value}" for option, value in (("q", r.queue), ("A", r.account)) if value]
    return [*(f"#PBS {line}" for line in (*lines, *r.extra)), 'cd "$PBS_O_WORKDIR"', "job_id=${PBS_JOBID%%.*}"]


def _sge(r: Request) -> list[str]:
    lines = [f"-N {r.name}", f"-pe {r.environment} {r.nodes * r.ranks * r.threads}", f"-l h_rt={_clock(r.seconds)}"]
    lines += ["-r y", "-j y", "-cwd", "-S /bin/bash"]
    lines += ["-l exclusive=true"] * r.exclusive
    given = (("q", r.queue), ("P", r.account), ("l", f"h_vmem={r.memory}" if r.memory else ""))
    lines += [f"-{option} {value}" for option, value in given if value]
    return [*(f"#$ {line}" for line in (*lines, *r.extra)), "job_id=$JOB_ID"]


def _start(r: Request) -> str:
    """The line that starts the ranks. The number of the job in the words is left to the shell."""
    words = " ".join(_quote(word) for word in r.words)
    total = r.nodes * r.ranks
    if r.launcher != "mpirun":
        mpi = r.launcher.removeprefix("srun-")
        options = f"--ntasks={total} --cpus-per-task={r.threads} --cpu-bind=cores --kill-on-bad-exit=1"
        return f"srun --mpi={mpi} {options} {words}"
    start = f"{shlex.quote(r.mpirun)} -n {total} {_mpirun_binding(r)}{words}"
    if r.scheduler == "slurm":
        return start
    # these schedulers send no signal ahead of the limit, or only where they are set up to
    return f"timeout --preserve-status --signal=USR1 {max(1, r.seconds - r.early)} {start}"


def _mpirun_binding(r: Request) -> str:
    """mpirun's options that give each rank its own cores, where the whole node is the job's."""
    if not _bound(r):
        return ""
    said = subprocess.run([r.mpirun, "--version"], capture_output=True, text=True, check=False).stdout
    if "HYDRA" in said:
        return f"-bind-to core:{r.threads} "
    return f"--map-by slot:PE={r.threads} --bind-to core " if re.search("Open ?MPI|open-mpi|prte", said, re.I) else ""


def _quote(word: str) -> str:
    return f'"{word}"' if word.endswith(_JOB_IDS) else shlex.quote(word)


def _again(r: Request) -> list[str]:
    """What puts the job back into the queue after exit code 85."""
    if r.scheduler == "slurm":
        return [
            f'if [ $code -eq 85 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {r.requeues} ]; then',
            '  scontrol requeue "$SLURM_JOB_ID"',
            "fi",
        ]
    if r.scheduler == "pbs":
        return ['[ $code -eq 85 ] && qrerun "$PBS_JOBID"']
    return ["[ $code -eq 85 ] && exit 99  # SGE's code for: run me again"]


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def parse_time(text: str) -> int:
    """'1-12:00:00', '12:00:00' or minutes, in seconds; SubmitError otherwise."""
    if text.isdecimal() and int(text) > 0:
        return 60 * int(text)
    match = _TIME.match(text)
    if match is None:
        raise SubmitError(f"--time is '{text}', expected HH:MM:SS, D-HH:MM:SS or minutes")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def ranks_command(words: Sequence[str], name: str, scheduler: str) -> list[str]:
    """What each rank executes. A training run gets a folder of its own where none is given, and goes on in it."""
    command, *rest = words
    if command == "-m" or command.endswith(".py"):
        return [sys.executable, *words]
    if command not in ("train", "infer", "slide", "prepare"):
        raise SubmitError(f"unknown command '{command}', expected train, infer, slide, prepare, -m MODULE or a file.py")
    if command == "train":
        if not any(word.split("=")[0] == "--out" for word in rest):
            variable = "$SLURM_JOB_ID" if scheduler == "slurm" else "$job_id"
            rest += ["--out", f"runs/{name}-{variable}"]
        rest += [] if "--resume" in rest else ["--resume"]
    return [sys.executable, "-m", f"medmpi.{command}", *rest]


def build_parser() -> argparse.ArgumentParser:
    """The parser; everything from the command on belongs to the ranks."""
    parser = argparse.ArgumentParser(prog="medmpi submit", description=__doc__)
    parser.add_argument("--scheduler", choices=SUBMIT, default=None, help="default: the one whose commands are found")
    parser.add_argument("--name", default="medmpi", help="of the job")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="ranks per node")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="cores and OpenMP threads per rank")
    parser.add_argument("--time", default="12:00:00", help="limit: HH:MM:SS, D-HH:MM:SS or minutes")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="mpirun", help="what starts the ranks")
    parser.add_argument(
        "--exclusive", action="store_true", help="whole nodes; then mpirun binds ranks to cores, as srun always does"
    )
    parser.add_argument("--early", type=int, default=120, metavar="S", help="seconds for the checkpoint at the limit")
    parser.add_argument("--requeues", type=int, default=50, metavar="K", help="Slurm: put back at most so many times")
    parser.add_argument("--queue", default="", help="queue or partition")
    parser.add_argument("--account", default="", help="account or project to charge")
    parser.add_argument("--memory", default="", help="per node, as the scheduler writes it, e.g. 64G")
    parser.add_argument("--parallel-environment", default="mpi", metavar="PE", help="SGE: its parallel environment")
    parser.add_argument(
        "--setup", action="append", default=[], metavar="LINE", help="e.g. 'module load mpich'; repeats"
    )
    parser.add_argument("--extra", action="append", default=[], metavar="OPTION", help="--extra=--gres=gpu:1")
    parser.add_argument("--script", type=Path, default=None, help="where to write it (default: NAME.sh)")
    parser.add_argument("--dry-run", action="store_true", help="print the script; write and submit nothing")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="train ..., infer ..., file.py ..., -- -m module ...")
    return parser


def request_of(given: argparse.Namespace) -> Request:
    """The request that flags make; SubmitError where they cannot be."""
    scheduler = given.scheduler or next((name for name, tool in (("slurm", "sbatch"), ("sge", "qconf"), ("pbs", "qsub"))
                                         if shutil.which(tool)), None)  # fmt: skip
    if scheduler is None:
        raise SubmitError("no scheduler found here (no sbatch, qsub); name one with --scheduler slurm, pbs or sge")
    words = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not words:
        raise SubmitError("the command is missing, for example: medmpi submit --ranks 4 train --model resnet18")
    for name in ("nodes", "ranks", "threads", "early", "requeues"):
        if getattr(given, name) < 1:
            raise SubmitError(f"--{name} is {getattr(given, name)}, expected 1 or more")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", given.name):
        raise SubmitError(f"--name is '{given.name}', expected letters, digits, '-', '_' and '.', a letter first")
    if given.launcher != "mpirun" and scheduler != "slurm":
        raise SubmitError(f"--launcher {given.launcher} is Slurm's, expected mpirun with {scheduler}")
    seconds = parse_time(given.time)
    if seconds <= given.early:
        raise SubmitError(f"--time is {given.time}, expected more than the --early {given.early} s before its end")
    return Request(
        words=tuple(ranks_command(words, given.name, scheduler)),
        scheduler=scheduler,
        name=given.name,
        nodes=given.nodes,
        ranks=given.ranks,
        threads=given.threads,
        seconds=seconds,
        launcher=given.launcher,
        mpirun=find_mpirun() or "mpirun",
        exclusive=given.exclusive,
        early=given.early,
        requeues=given.requeues,
        environment=given.parallel_environment,
        queue=given.queue,
        account=given.account,
        memory=given.memory,
        setup=tuple(given.setup),
        extra=tuple(given.extra),
    )


def main(argv: Sequence[str]) -> int:
    """Writes the script and submits it; the exit code."""
    given = build_parser().parse_args(argv)
    try:
        request = request_of(given)
        text = script(request)
        if given.dry_run:
            print(text, end="")
            return 0
        path = given.script or Path(f"{request.name}.sh")
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        tool = SUBMIT[request.scheduler]
        if shutil.which(tool) is None:
            raise SubmitError(f"{path} is written, but there is no {tool} here; submit it with '{tool} {path}'")
        done = subprocess.run([tool, str(path)], check=False)
    except SubmitError as error:
        print(f"medmpi submit: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"medmpi submit: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 1 if done.returncode else 0
