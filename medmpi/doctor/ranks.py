"""MPI: the launcher, and ranks that really meet, send, and sum.

``python -m medmpi.doctor.ranks`` is what each rank runs; rank 0 prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from medmpi import kernels as K
from medmpi.parallel import World, start
from medmpi.parallel.probe import probe
from medmpi.parallel.run import environment, find_mpirun

from .finding import Finding

_MARK = "medmpi-doctor "
_LARGE = 1 << 20  # elements: above every MPI's limit for eager messages


def meet(world: World) -> dict[str, Any]:
    """Ranks see each other, a message goes round, arrays are summed through MPI and by our own sums. Collective."""
    rank, size = world.rank, world.size
    report: dict[str, Any] = {"ranks": size, "nodes": world.nodes, "library": world.library, "problems": []}
    places = list(zip(world.hosts, world.allgather(sorted(os.sched_getaffinity(0))), strict=True))
    report["bound"] = binding(places, K.threads())
    report["enough"] = (os.cpu_count() or 1) >= size // world.nodes * K.threads()  # but for the binding
    if size > 1:
        mine, theirs, summed = np.full(_LARGE, rank, np.float32), np.empty(_LARGE, np.float32), np.empty(_LARGE)
        requests = [world.comm.Irecv(theirs, (rank - 1) % size, 7), world.comm.Isend(mine, (rank + 1) % size, 7)]
        world.wait_for(requests, (rank - 1) % size, "send round")
        world.comm.Allreduce(mine.astype(np.float64), summed)
        ours = world.allocate(_LARGE)
        ours[:] = rank
        world.sum(ours)
        total = size * (size - 1) / 2
        good = {
            "a message between ranks": bool((theirs == (rank - 1) % size).all()),
            "MPI_Allreduce": bool((summed == total).all()),
            "a sum through shared memory": bool((ours == total).all()),
        }
        for name in good:
            wrong = [r for r, fine in enumerate(world.allgather(good[name])) if not fine]
            if wrong:
                report["problems"].append(f"{name} came out wrong on ranks {', '.join(map(str, wrong))}")
        report["network"] = asdict(probe(world))
        report["memory"] = world.shared_memory_problem
    return report


def binding(places: list[tuple[str, list[int]]], threads: int) -> str:
    """What is wrong with the cores that the ranks (host, cores) may use at ``threads`` each; empty: nothing."""
    hosts: dict[str, list[list[int]]] = {}
    for host, cores in places:
        hosts.setdefault(host, []).append(cores)
    for host, lists in hosts.items():
        together, least = len(set().union(*lists)), min(map(len, lists))
        if least < threads:
            return f"a rank on {host} has {_number(threads, 'thread')} and may use {_number(least, 'core')}"
        if len(lists) * threads > together:
            ranks = f"{_number(len(lists), 'rank')} of {_number(threads, 'thread')}"
            return f"{ranks} on {host} may use {_number(together, 'core')} together"
    return ""


def _number(n: int, name: str) -> str:
    return f"{n} {name}{'s' * (n != 1)}"


def launched(ranks: int, seconds: float) -> Iterator[Finding]:
    """Starts ranks on this machine and reports what they found."""
    mpirun = find_mpirun()
    if mpirun is None:
        yield Finding("MPI", "warning", "no mpirun: training runs on one rank", "pip install 'medmpi[mpich]'")
        return
    command = [mpirun, "-n", str(ranks), sys.executable, "-m", "medmpi.doctor.ranks"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment(ranks, os.environ, threads=None, terminal=False),
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            _, err = process.communicate(timeout=5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            _, err = process.communicate()
        text = f"{mpirun} -n {ranks}: nothing within {seconds:.0f} s; {_last(err)}".rstrip("; ")
        cure = "does 'mpirun -n 2 hostname' answer? A firewall, a VPN or a full /tmp can keep ranks apart"
        yield Finding("MPI", "problem", text, cure)
        return
    reports = [json.loads(line.removeprefix(_MARK)) for line in out.splitlines() if line.startswith(_MARK)]
    yield from told(mpirun, ranks, reports, process.returncode, err)


def told(mpirun: str, ranks: int, reports: list[dict[str, Any]], code: int, err: str) -> Iterator[Finding]:
    """The findings from what so many ranks have printed."""
    fit = "install mpi4py for the MPI of this mpirun, or use the environment's own: pip install 'medmpi[mpich]'"
    if code:
        yield Finding("MPI", "problem", f"{mpirun} -n {ranks} ended with exit code {code}: {_last(err)}", fit)
    elif len(reports) != 1 or reports[0]["ranks"] != ranks:
        alone = f"{len(reports)} jobs of one rank" if len(reports) > 1 else "no report"
        yield Finding("MPI", "problem", f"{mpirun} -n {ranks} made {alone}: it belongs to another MPI", fit)
    else:
        enough = len(os.sched_getaffinity(0)) >= ranks
        yield from findings({**reports[0], "enough": enough}, mpirun)


def _last(text: str) -> str:
    """The line that says most: ours if there is one, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith(("medmpi", "[rank", "ImportError"))]
    return (own or lines or ["it said nothing"])[-1][:300]


def findings(report: Mapping[str, Any], mpirun: str = "") -> Iterator[Finding]:
    """What a report of ``meet`` means."""
    ranks, nodes = report["ranks"], report["nodes"]
    text = f"{' '.join(report['library'].split())}, {_number(ranks, 'rank')} on {_number(nodes, 'node')}"
    text += f" by {mpirun}" if mpirun else ""
    for problem in report["problems"]:
        yield Finding("MPI", "problem", f"{text}: {problem}", "try another MPI: medmpi works with each")
    if not report["problems"]:
        yield Finding("MPI", "ok", text + (", message and sums right" if ranks > 1 else ""))
    if report["bound"]:
        cure = "fewer ranks or threads"
        if report["enough"]:
            cure = (
                "they wait for each other while cores idle: bind each rank to cores of its own, as in 'mpirun -bind-to "
            )
            cure += "core:T' (MPICH), '--map-by slot:PE=T' (Open MPI), 'srun --cpus-per-task T'"
        yield Finding("binding", "problem" if report["enough"] else "warning", report["bound"], cure)
    if "network" in report:
        n = report["network"]
        text = f"message {n['latency'] * 1e6:.1f} us, {n['bandwidth'] / 1e9:.1f} GB/s; "
        text += f"sum {n['meeting'] * 1e6:.1f} us, {n['sum_bandwidth'] / 1e9:.1f} GB/s"
        if nodes > 1:
            text += f"; between nodes {n['far_latency'] * 1e6:.1f} us, {n['far_bandwidth'] / 1e9:.1f} GB/s"
        yield Finding("between ranks", "ok", text)
        if report["memory"]:
            cure = "gradients take the slower way through MPI: allow memfd_create and /proc (seccomp, containers)"
            yield Finding("between ranks", "warning", report["memory"], cure)


def main() -> int:
    """One rank."""
    with start(30.0) as world:
        report = meet(world)
        if world.rank == 0:
            print(_MARK + json.dumps(report), flush=True)
        world.barrier("end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
