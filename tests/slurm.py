"""A real Slurm of one node for tests, where its daemons are installed."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={control}
SlurmdPort={daemon}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4096 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def slurm(tmp_path):
    """A Slurm of one node of its own; the environment of its commands."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "scontrol") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {missing[0]} here: install Debian's slurmctld, slurmd and slurm-client")
    if os.getuid() != 0:
        pytest.skip("slurmd starts jobs as root only")
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    cpus = len(os.sched_getaffinity(0))
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, control=free_port(), daemon=free_port(), folder=folder, cpus=cpus))
    environment = {**os.environ, "SLURM_CONF": str(conf), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    daemons = [
        subprocess.Popen([name, "-D", "-f", str(conf)], env=environment, stderr=subprocess.DEVNULL)
        for name in ("slurmctld", "slurmd")
    ]
    try:
        if not until(lambda: "idle" in command(environment, "sinfo", "-h", "-o", "%t"), 20):
            log = (folder / "slurmctld.log").read_text()[-500:]
            pytest.skip(f"the test's Slurm has no idle node: {log}")
        yield environment
    finally:
        command(environment, "scancel", "--user=root")
        until(lambda: not command(environment, "squeue", "-h"), 15)
        for process in reversed(daemons):
            process.terminate()
        for process in daemons:
            process.wait(20)
        for pid in processes_of(conf):  # steps that still want to report to a daemon that is gone
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes_of(conf):
    """Processes that this test's Slurm has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"SLURM_CONF={conf}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def command(environment, *words):
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False).stdout


def until(done, seconds):
    end = time.monotonic() + seconds
    while not (found := done()) and time.monotonic() < end:
        time.sleep(0.1)
    return found
