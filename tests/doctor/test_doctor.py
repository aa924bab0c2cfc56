"""``medmpi doctor``: a healthy machine, and faults that were planted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medmpi.cli import main
from medmpi.doctor import device, machine, ranks, readers
from medmpi.doctor.finding import carefully
from medmpi.parallel.run import find_mpirun

pytestmark = pytest.mark.mpi_skip


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def by_subject(text, code):
    """The findings of a report by subject; the worst where there are several."""
    report = json.loads(text)
    order = ["ok", "note", "warning", "problem"]
    found = sorted(report["findings"], key=lambda f: order.index(f["state"]))
    assert report["good"] == (code == 0)
    return {f["subject"]: f for f in found}


def findings(capsys, *flags):
    """The exit code and the findings."""
    code = main(["doctor", "--json", *flags])
    return code, by_subject(capsys.readouterr().out, code)


def planted_mpirun(monkeypatch, folder, script):
    """A launcher that is this script of the shell."""
    path = folder / "mpirun"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(ranks, "find_mpirun", lambda: str(path))


def test_here(tmp_path):
    # in a process of its own: other tests load torch, which brings a second OpenMP
    command = [sys.executable, "-m", "medmpi.cli", "doctor", "--json", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = by_subject(done.stdout, done.returncode)
    # what these tests need anyhow; disk, memory and the like are the machine's own
    assert all(found[subject]["state"] != "problem" for subject in ("kernels", "openmp", "MPI", "between ranks")), found
    assert "each tried" in found["kernels"]["text"]
    assert "2 ranks" in found["MPI"]["text"]
    assert "GB/s" in found["between ranks"]["text"]
    assert not any(tmp_path.iterdir())


def test_table(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "find_mpirun", lambda: None)
    assert main(["doctor", "--folder", str(tmp_path / "none")]) == 1
    text = capsys.readouterr().out
    assert "PROBLEM" in text
    assert "-> name another with --folder" in text
    assert "no mpirun" in text


def test_ranks_that_a_launcher_started():
    """Under mpirun no ranks are started; those that are there meet, and one of them tells."""
    command = [find_mpirun(), "-n", "2", sys.executable, "-m", "medmpi.doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["good"] else 1), done.stderr
    (mpi,) = [f for f in report["findings"] if f["subject"] == "MPI"]
    assert mpi["state"] == "ok"
    assert "2 ranks on 1 node" in mpi["text"]


def test_a_launcher_of_another_mpi(capsys, monkeypatch, tmp_path):
    """It starts N processes, each of which is alone."""
    planted_mpirun(monkeypatch, tmp_path, 'shift 2; "$@" & "$@"; wait')
    code, found = findings(capsys, "--folder", str(tmp_path))
    assert code == 1
    assert "2 jobs of one rank" in found["MPI"]["text"]
    assert "pip install" in found["MPI"]["cure"]


def test_a_launcher_that_hangs(capsys, monkeypatch, tmp_path):
    planted_mpirun(monkeypatch, tmp_path, "exec sleep 100")
    code, found = findings(capsys, "--timeout", "0.5")
    assert code == 1
    assert "nothing within" in found["MPI"]["text"]


def test_a_launcher_that_fails(capsys, monkeypatch, tmp_path):
    planted_mpirun(monkeypatch, tmp_path, "echo 'no route to host' >&2; exit 9")
    code, found = findings(capsys)
    assert code == 1
    assert "exit code 9: no route to host" in found["MPI"]["text"]


@pytest.mark.parametrize("value", ["64000", "0", "many"])
def test_threads(capsys, monkeypatch, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    monkeypatch.setattr(ranks, "find_mpirun", lambda: None)
    code, found = findings(capsys)
    assert code == 1
    assert found["threads"]["state"] == "problem"
    assert "OMP_NUM_THREADS" in found["threads"]["cure"]


def test_bound_to_few_cores():
    found = machine.threads_finding({}, 1, 16, 8)
    assert found.state == "warning"
    assert "1 of 16 cores (8 physical)" in found.text
    assert machine.threads_finding({"SLURM_JOB_ID": "1"}, 4, 16, 8).state == "ok"


def test_binding():
    assert ranks.binding([("a", [0, 1]), ("a", [2, 3]), ("b", [0, 1])], 2) == ""
    assert "2 threads and may use 1 core" in ranks.binding([("a", [0]), ("a", [1])], 2)
    assert "2 ranks of 2 threads on a may use 2 cores together" in ranks.binding([("a", [0, 1]), ("a", [0, 1])], 2)
    report = {"ranks": 2, "nodes": 1, "library": "X", "problems": [], "bound": "bad", "enough": True}
    assert [f.state for f in ranks.findings(report)] == ["ok", "problem"]
    assert [f.state for f in ranks.findings({**report, "enough": False})] == ["ok", "warning"]


def test_two_openmp_runtimes():
    maps = "7f r-xp 0 1 /usr/lib/libgomp.so.1.0.0\n7f r-xp 0 1 /opt/intel/libiomp5.so\n7f rw-p 0 1 /usr/lib/libc.so.6\n"
    (found,) = machine.openmp(maps)
    assert found.state == "problem"
    assert found.text == "libgomp.so.1.0.0 and libiomp5.so"
    assert next(iter(machine.openmp(Path("/proc/self/maps").read_text()))).text


def test_a_wrong_kernel(monkeypatch):
    monkeypatch.setattr(machine, "_error", lambda: 1e-3)
    (found,) = machine.kernels()
    assert found.state == "problem"


def test_places(tmp_path, monkeypatch):
    assert machine.shared_memory(tmp_path / "none").state == "problem"
    assert machine.disk("run folder", tmp_path).state in ("ok", "warning")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    assert [f.subject for f in machine.disks(tmp_path) if f.state == "problem"] == ["temporary files"]
    full = os.statvfs_result((4096, 4096, 1000, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    assert machine.disk("run folder", tmp_path).state == "warning"
    assert machine.shared_memory(tmp_path).state == "problem"


def test_huge_pages():
    assert machine.huge_pages("always madvise [never]").state == "warning"
    assert machine.huge_pages("always [madvise] never").state == "ok"
    assert machine.huge_pages("").state == "note"


def test_a_card_that_is_not_used():
    assert device.no_device("built without CUDA", "").state == "note"
    assert "nvcc" in device.no_device("built without CUDA", "GPU 0: NVIDIA H200").cure
    assert "driver" in device.no_device("cudaGetDeviceCount: no driver", "an NVIDIA card").cure


def test_packages(monkeypatch, tmp_path):
    """One that is missing is a note, one that does not load a problem."""

    def broken():
        raise OSError("Unable to lock file, errno = 37")

    monkeypatch.setitem(sys.modules, "h5py", None)
    found = {f.subject: f for f in readers.readers(tmp_path)}
    assert found["HDF5"].state == "note"
    assert found["HDF5"].cure == "pip install 'medmpi[io]'"
    assert found["pictures"].state == "ok"
    monkeypatch.setitem(sys.modules, "h5py", sys)
    monkeypatch.setattr(readers, "_hdf5", lambda folder: broken())
    found = {f.subject: f for f in readers.readers(tmp_path)}
    assert found["HDF5"].state == "problem"
    assert "HDF5_USE_FILE_LOCKING=FALSE" in found["HDF5"].cure


def test_a_check_that_fails():
    (found,) = carefully("x", lambda: 1 / 0)
    assert found.state == "problem"
    assert "ZeroDivisionError" in found.text


def test_wrong_arguments():
    for flags in (["-n", "0"], ["--timeout", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *flags])
        assert ended.value.code == 2
