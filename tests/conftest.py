"""Tests with pytest-mpi's ``mpi`` marker run on several ranks, also from a plain ``pytest``.

``mpirun -n N python -m pytest --with-mpi`` runs them as they are. A plain ``pytest`` starts ``mpirun`` itself: once for
all selected tests of a file that need the same number of ranks, each test under a time limit. A test that fails on one
rank ends all ranks; the tests after it then run in a new start.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# The same examples in every run: a failure is somebody's change. MEDMPI_HYPOTHESIS=random looks for new ones.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.register_profile("random")
hypothesis.settings.load_profile(os.environ.get("MEDMPI_HYPOTHESIS", "fixed"))

RESULTS = "MEDMPI_TEST_RESULTS"  # where rank 0 of a start of ours notes how its tests went
SECONDS = 300  # for one test, on a machine however busy
NEEDS_MPI = "need --with-mpi option to run"


def mpirun() -> str:
    """The mpirun of this Python's environment, so that it fits the MPI that mpi4py loads."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if not found:
        pytest.skip("no mpirun in this environment: install the 'mpich' extra")
    return found


def ranks_of(item: pytest.Item) -> int | None:
    """The number of ranks that an ``mpi`` test asks for."""
    mark = item.get_closest_marker("mpi")
    return None if mark is None else int(mark.kwargs.get("min_size", 2))


def under_mpi(config: pytest.Config) -> bool:
    """Whether this process is one of the ranks."""
    return bool(config.getoption("--with-mpi") or config.getoption("--only-mpi"))


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Takes back the skip mark that pytest-mpi gives its tests without ``--with-mpi``: we start them ourselves."""
    yield
    if under_mpi(config):
        return
    for item in items:
        if ranks_of(item) is not None:
            item.own_markers = [m for m in item.own_markers if m.kwargs.get("reason") != NEEDS_MPI]


def start_ranks(config: pytest.Config, ranks: int, ids: list[str]) -> tuple[dict[str, str], str]:
    """Runs tests on so many ranks. How each went (``passed``, ``skipped: why``, ``running``), and the output."""
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as results:
        command = [mpirun(), "-n", str(ranks), sys.executable, "-m", "pytest", "--with-mpi", "-q", "-x"]
        command += ["-p", "no:cacheprovider", f"--timeout={SECONDS}", "--timeout-method=thread", "--no-header", *ids]
        environment = {**os.environ, RESULTS: results.name, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(config.rootpath), os.environ.get("PYTHONPATH", "")]).rstrip(
            ":"
        )
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=config.rootpath
        )
        try:
            output = process.communicate(timeout=SECONDS * (len(ids) + 1))[0]
        except subprocess.TimeoutExpired:
            process.terminate()
            output = process.communicate()[0] + "\n(ended by its time limit)"
        outcome = {}
        for line in results.read().splitlines():
            name, state = json.loads(line)
            outcome[name] = state
        if process.returncode and not outcome:
            outcome[ids[0]] = "running"
        elif process.returncode and all(v != "running" for v in outcome.values()):
            outcome[list(outcome)[-1]] = "running"  # another rank failed in the last test or while leaving
        return outcome, output


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Before the first test of a group runs, starts the group on its ranks."""
    if ranks_of(item) is None or under_mpi(item.config) or item.nodeid in group_results(item.session):
        return
    left = [i.nodeid for i in item.session.items if i.path == item.path and ranks_of(i) == ranks_of(item)]
    left = left[left.index(item.nodeid) :]
    while left:
        outcome, output = start_ranks(item.config, ranks_of(item) or 2, left)
        for name, state in outcome.items():
            group_results(item.session)[name] = (state, output)
        before = len(left)
        left = [name for name in left if name not in outcome]
        if len(left) == before:  # nothing ran: the first one answers for it
            group_results(item.session)[left.pop(0)] = ("running", output)


def group_results(session: pytest.Session) -> dict[str, tuple[str, str]]:
    """State and output of the tests that have run on ranks."""
    results: dict[str, tuple[str, str]] = session.__dict__.setdefault("_medmpi_results", {})
    return results


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Reports how a test went on its ranks."""
    if ranks_of(pyfuncitem) is None or under_mpi(pyfuncitem.config):
        return None
    state, output = group_results(pyfuncitem.session)[pyfuncitem.nodeid]
    if state.startswith("skipped"):
        pytest.skip(state.partition(": ")[2])
    if state != "passed":
        pytest.fail(f"on {ranks_of(pyfuncitem)} ranks:\n{output}", pytrace=False)
    return True


def note(name: str, state: str) -> None:
    """Rank 0 of a start of ours writes how its tests go."""
    from mpi4py import MPI

    if RESULTS in os.environ and MPI.COMM_WORLD.rank == 0:
        with open(os.environ[RESULTS], "a") as file:
            file.write(json.dumps([name, state]) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    """On ranks: notes the result, and ends all ranks when this one's test has failed; the others would wait."""
    report = yield
    if under_mpi(item.config) and ranks_of(item) is not None:
        from mpi4py import MPI

        if report.failed and MPI.COMM_WORLD.size > 1:
            print(f"\n[rank {MPI.COMM_WORLD.rank}] {item.nodeid} failed:\n{report.longreprtext}", flush=True)
            for title, text in report.sections:
                print(f"--- {title}\n{text}", flush=True)
            MPI.COMM_WORLD.Abort(1)
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            note(item.nodeid, f"skipped: {reason.removeprefix('Skipped: ')}")
        elif report.when == "setup":
            note(item.nodeid, "running")
        elif report.when == "teardown":
            MPI.COMM_WORLD.Barrier()  # passed means: on all ranks
            note(item.nodeid, "passed")
    return report
