"""A job that works in steps until a fault strikes its last rank: ``job.py FAULT [operation]``."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import time

import numpy as np

from medmpi import parallel

TIMEOUT = 1.0
fault = sys.argv[1]
operation = sys.argv[2] if len(sys.argv) > 2 else "sum"
if fault == "stop-before-start" and os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "1":
    os.kill(os.getpid(), signal.SIGSTOP)
world = parallel.start(timeout=TIMEOUT)
victim = world.rank == world.size - 1


def say(line: str) -> None:
    """One write, so that the lines of two ranks do not mix."""
    os.write(1, f"{line}\n".encode())


def step() -> None:
    """One collective operation of the kind asked for."""
    if operation == "sum":
        world.sum(np.ones(8), "sum of gradients")
    else:
        world.allgather(1)


def strike() -> None:
    """What happens to the last rank."""
    if fault == "exception":
        raise ValueError("bad file scan.dcm")
    if fault == "thread":
        threading.Thread(target=lambda: 1 // 0, name="loader").start()
    elif fault == "exit":
        sys.exit(3)
    elif fault == "exit-in-world":
        with world:
            raise SystemExit(4)
    elif fault == "leave":
        sys.exit(0)
    elif fault == "vanish":
        os._exit(0)
    elif fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "segfault":
        ctypes.string_at(0)
    elif fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "sleep":
        time.sleep(1000)
    elif fault == "other-operation":
        world.barrier("barrier after the epoch")
    elif fault == "skip":
        time.sleep(0.2)  # and never does the last step, as a rank with one batch fewer
        sys.exit(0)


if fault == "all-exit":
    step()
    sys.exit(85)
if fault == "codes-differ":
    sys.exit(4 if victim else 1)
if fault == "exit-while-others-work":
    if victim:
        sys.exit(3)
    time.sleep(1000)
if fault == "late-writer":
    step()
    if not victim:
        time.sleep(0.5)  # writes the report when the others have finished
    sys.exit(0)
if fault in ("stop-before-leaving", "stop-in-farewell"):
    step()
    if victim and fault == "stop-in-farewell":  # after those of the guard, which were registered later
        guard_at_exit = world._guard._at_exit
        atexit.unregister(guard_at_exit)
        atexit.register(os.kill, os.getpid(), signal.SIGSTOP)
        atexit.register(guard_at_exit)
    elif victim:
        os.kill(os.getpid(), signal.SIGSTOP)
    sys.exit(0)
if fault == "disagree":
    world.agree({"lr": 0.1 if victim else 0.2, "seed": 1})
if fault == "interrupt-stuck" and victim:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
for i in range(100_000):
    if i == 20:
        say(f"steps {world.rank}")
        if victim:
            strike()
    step()
    time.sleep(0.002)
    if world.any(world.stop_requested()):
        say(f"checkpoint {world.rank}")
        sys.exit(85)
