"""Joins the ranks of a job, or refuses to when the launcher and MPI do not fit together."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import medmpi

from .. import kernels
from ..kernels.collective import Vigil
from .guard import EXIT_USAGE, EXIT_WATCHDOG, Guard
from .world import CROWDED, ROOMY, World

# what launchers tell their processes about the number of ranks
SIZE_VARIABLES = (
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",
    "MV2_COMM_WORLD_SIZE",
    "MPI_LOCALNRANKS",
    "PMIX_SIZE",
    "PALS_NRANKS",
    "FLUX_JOB_SIZE",
    "JSM_NAMESPACE_SIZE",
)
_LONGEST_START = 300.0  # seconds

_guard: Guard | None = None


def launcher_size(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """The variable that says that a launcher started more than one process, and their number."""
    for name in SIZE_VARIABLES:
        value = environ.get(name, "")
        if value.isdigit() and int(value) > 1:
            return name, int(value)
    return None


def launch_problem(size: int | None, reason: str, environ: Mapping[str, str]) -> str | None:
    """Why a process whose MPI says ``size`` (None: no MPI, for ``reason``) must not go on; None when all is well."""
    told = launcher_size(environ)
    if told is None or (size is not None and size > 1):
        return None
    name, expected = told
    if name == "SLURM_STEP_NUM_TASKS":
        cure = "start with 'srun --mpi=pmi2' (or --mpi=pmix), or with mpirun inside the allocation"
    else:
        cure = "start with the mpirun of the environment that mpi4py is in: 'medmpi run -n N ...' finds it"
    if size is None:
        return (
            f"{name} says {expected} ranks, but MPI cannot be used: {reason}; install it with 'pip install mpi4py "
            f"mpich' or load the site's MPI, and {cure}"
        )
    return (
        f"{name} says {expected} ranks, but each process is alone in its MPI world: the launcher belongs to another "
        f"MPI, and {expected} jobs would overwrite each other's files; {cure}"
    )


def start(
    timeout: float = 300.0, *, threads: int | None = None, nodes: int | None = None, stopped: float | None = None
) -> World:
    """Joins all ranks and installs the guard; with no MPI and no launcher, a world of one rank.

    ``timeout`` is how long a collective operation may wait for a rank (seconds). ``threads`` is the number of OpenMP
    threads of each rank: OMP_NUM_THREADS where set, else the cores of the node over its ranks. ``nodes`` treats the
    ranks of one machine as that many machines (also MEDMPI_NODES), for tests. ``stopped`` is how long a rank of this
    machine may be stopped by a signal before all have joined (seconds, default ``timeout``); ranks may differ. A job
    that would run as silent copies of one rank ends with exit code 2.
    """
    if timeout <= 0:
        raise ValueError(f"start: timeout is {timeout}, expected more than 0 seconds")
    # the other ranks' pages, which the watchdog reads, do not exist yet; MPI keeps the interpreter lock while it waits
    vigil = None
    if launcher_size(os.environ):
        vigil = Vigil("start of MPI", stopped or timeout, max(timeout, _LONGEST_START), EXIT_WATCHDOG)
    try:
        return _join(timeout, threads, nodes)
    finally:
        if vigil is not None:
            vigil.end()


def _join(timeout: float, threads: int | None, nodes: int | None) -> World:
    mpi, reason = _import_mpi()
    size = mpi.COMM_WORLD.Get_size() if mpi else None
    problem = launch_problem(size, reason, os.environ)
    if problem:
        _refuse(problem)
    if mpi is None or size == 1:
        world_of_one = _install(0, 1, None)
        world = World(None, world_of_one, timeout=timeout, library=_library(mpi))
        _set_threads(threads, 1)
        return world
    guard = _install(mpi.COMM_WORLD.rank, size or 1, mpi)
    comm = mpi.COMM_WORLD.Dup()
    machine = comm.Split_type(mpi.COMM_TYPE_SHARED, comm.rank)
    parts = nodes or int(os.environ.get("MEDMPI_NODES", "1"))
    key = machine.bcast(comm.rank), machine.rank * parts // machine.size
    cores = len(os.sched_getaffinity(0))
    per_rank = _threads(threads, cores, machine.size)
    of_all = len(set().union(*machine.allgather(os.sched_getaffinity(0))))  # launchers may bind each rank to its own
    patience = CROWDED if per_rank * machine.size > of_all else ROOMY
    world = World(comm, guard, timeout=timeout, node_key=key, library=_library(mpi), patience=patience)
    machine.Free()
    _set_threads(per_rank, 1)
    if world.shared_memory_problem and world.rank == 0:
        print(f"medmpi: {world.shared_memory_problem}; gradients go through MPI", file=sys.stderr, flush=True)
    world.agree({"medmpi version": medmpi.__version__, "timeout": timeout})
    return world


def _install(rank: int, size: int, mpi: Any) -> Guard:
    global _guard
    if _guard is None or _guard.closed:
        _guard = Guard(rank, size, (lambda code: mpi.COMM_WORLD.Abort(code)) if mpi else (lambda code: None))
        _guard.install()
    return _guard


def _import_mpi() -> tuple[Any, str]:
    """mpi4py.MPI, initialised, or None and why not."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        return None, f"{type(error).__name__}: {error}"
    return MPI, ""


def _refuse(problem: str) -> NoReturn:
    sys.stderr.write(f"medmpi: {problem}\n")
    sys.stderr.flush()
    raise SystemExit(EXIT_USAGE)


def _library(mpi: Any) -> str:
    return str(mpi.Get_library_version()).splitlines()[0].strip("\x00 ") if mpi else "none"


def _threads(threads: int | None, cores: int, ranks: int) -> int:
    if threads is not None:
        if threads < 1:
            raise ValueError(f"start: threads is {threads}, expected 1 or more")
        return threads
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(told) if told.isdigit() and int(told) > 0 else max(1, cores // ranks)


def _set_threads(threads: int | None, ranks: int) -> None:
    kernels.set_threads(_threads(threads, len(os.sched_getaffinity(0)), ranks))
