"""Processor, threads, memory and disks."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import psutil

from medmpi import kernels as K

from .finding import Finding

_GIB = 1 << 30
_OPENMP = re.compile(r"/(lib(?:gomp|omp|iomp5)[^/\s]*\.so[^/\s]*)$", re.MULTILINE)
_WANTED = {"x86_64": "cpu.avx2"}  # what every machine of the last ten years runs


def kernels() -> Iterator[Finding]:
    """Which instruction set is chosen, and whether all that this machine runs compute right."""
    names = [name for name in K.backends() if name.startswith("cpu.")]
    chosen, wrong = K.backend(), []
    try:
        for name in names:
            K.use_backend(name)
            wrong += [name] * (_error() > 1e-5)
    finally:
        K.use_backend(chosen)
    text = f"{chosen} of {', '.join(names)} on {_processor()}"
    if wrong:
        cure = "install again from source on this machine: pip install --force-reinstall --no-binary medmpi medmpi"
        yield Finding("kernels", "problem", f"{', '.join(wrong)}: a convolution comes out wrong", cure)
    elif chosen != names[0]:
        yield Finding("kernels", "warning", f"{text}, each tried", f"{names[0]} is faster: unset MEDMPI_BACKEND")
    elif (wanted := _WANTED.get(platform.machine())) and wanted not in names:
        yield Finding("kernels", "warning", text, "this processor, or what emulates it, has no AVX2: expect a quarter")
    else:
        yield Finding("kernels", "ok", text + ", each tried")


def _error() -> float:
    """The largest error of a small convolution, relative to its largest value, against numpy in float64."""
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 9, 10, 16), dtype=np.float32)
    weight = random.standard_normal((3, 3, 16, 24), dtype=np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), (1, 2))
    expected = np.einsum("nhwcrs,rsck->nhwk", windows, weight.astype(np.float64))
    return float(np.abs(K.conv2d(x, weight) - expected).max() / np.abs(expected).max())


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.machine()


def threads() -> Iterator[Finding]:
    """Cores, what this process may use of them, and what OMP_NUM_THREADS makes of it."""
    yield threads_finding(os.environ, len(os.sched_getaffinity(0)), os.cpu_count() or 1, psutil.cpu_count(False))
    maps = Path("/proc/self/maps")
    if maps.exists():
        yield from openmp(maps.read_text(encoding="utf-8"))


def threads_finding(environ: Mapping[str, str], usable: int, cores: int, physical: int | None) -> Finding:
    """What is said about so many usable cores of the machine's."""
    told = environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    text = f"{usable} of {cores} cores" + (f" ({physical} physical)" if physical and physical < cores else "")
    text += f", OMP_NUM_THREADS={told}" if told else ", OMP_NUM_THREADS not set"
    if told and not (told.isdecimal() and int(told) > 0):
        return Finding("threads", "problem", text, "set OMP_NUM_THREADS to cores / ranks, or unset it")
    if told and int(told) > usable:
        cure = f"more threads than cores wait for each other: OMP_NUM_THREADS={usable}, or fewer with several ranks"
        return Finding("threads", "problem", text, cure)
    if usable < cores and not any(name.startswith(("SLURM_", "PBS_", "SGE_", "PMI_")) for name in environ):
        cure = "this shell is bound (taskset, cpuset, a container's limit): start from one that is not, if unintended"
        return Finding("threads", "warning", text, cure)
    return Finding("threads", "ok", text)


def openmp(maps: str) -> Iterator[Finding]:
    """The OpenMP runtimes among the mapped files of a process (the text of /proc/self/maps)."""
    found = sorted({match[1] for match in _OPENMP.finditer(maps)})
    if len(found) > 1:
        cure = "two of them fight over the cores or crash: start without what brings the second (LD_PRELOAD, modules)"
        yield Finding("openmp", "problem", " and ".join(found), cure)
    else:
        yield Finding("openmp", "ok", found[0] if found else "linked into the kernels")


def memory() -> Iterator[Finding]:
    """Memory, huge pages, and shared memory for MPI's ranks."""
    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    limit = _control_group_limit()
    text = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    text += f", limited to {limit / _GIB:.1f} GiB" if limit else ""
    low = min(free, limit or free) < 1 * _GIB
    cure = "ResNet-18 at 32x32 takes about 0.4 GiB a rank, ResNet-50 at 224x224 several: free some, or --batch-size 8"
    yield Finding("memory", "warning" if low else "ok", text, cure if low else "")
    yield huge_pages(_text(Path("/sys/kernel/mm/transparent_hugepage/enabled")))
    yield shared_memory(Path("/dev/shm"))


def _control_group_limit() -> int | None:
    """What the container or job may take, in bytes, where that is limited."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _text(Path(path))
        if text.isdecimal() and int(text) < psutil.virtual_memory().total:
            return int(text)
    return None


def huge_pages(enabled: str) -> Finding:
    """What the kernel's setting of transparent huge pages ('always [madvise] never') means here."""
    if "[never]" in enabled:
        cure = "large arrays cost more page faults: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (root)"
        return Finding("huge pages", "warning", "switched off", cure)
    chosen = re.search(r"\[(\w+)\]", enabled)
    return Finding("huge pages", "ok" if chosen else "note", chosen[1] if chosen else "not known to this kernel")


def shared_memory(place: Path) -> Finding:
    """Whether ranks can share memory: MPI through this folder, our sums of gradients through memfd_create."""
    cure = "MPI's ranks of one machine meet there: mount it, or start the container with --shm-size=1g"
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(b"medmpi")
        size = shutil.disk_usage(place)
        os.close(os.memfd_create("medmpi-doctor"))
    except OSError as error:
        return Finding("shared memory", "problem", f"{place}: {error.strerror}", cure)
    text = f"{place}: {size.free / _GIB:.2f} of {size.total / _GIB:.2f} GiB free"
    if size.free < 64 << 20:
        return Finding("shared memory", "problem", text, cure)
    return Finding("shared memory", "ok", text)


def disks(folder: Path) -> Iterator[Finding]:
    """Room, and leave to write, in the folder for runs and in the one for temporary files."""
    places = {"run folder": folder.absolute()}
    try:
        places["temporary files"] = Path(tempfile.gettempdir())
    except OSError as error:
        yield Finding("temporary files", "problem", str(error), "set TMPDIR to a folder that can be written")
    told = os.environ.get("TMPDIR")
    if told and not os.access(told, os.W_OK):
        yield Finding("temporary files", "problem", f"TMPDIR is {told}: no folder that can be written", "make it")
    for name, place in places.items():
        yield disk(name, place)


def disk(name: str, place: Path) -> Finding:
    """Writes a file of a megabyte there and reads it back."""
    try:
        size = shutil.disk_usage(place)
        with tempfile.NamedTemporaryFile(dir=place, prefix=".medmpi-doctor.") as file:
            file.write(b"\xa5" * (1 << 20))
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            whole = file.read() == b"\xa5" * (1 << 20)
    except OSError as error:
        cure = "name another with --folder" if name == "run folder" else "set TMPDIR"
        return Finding(name, "problem", f"{place}: {error.strerror}", cure)
    text = f"{place}: {size.free / _GIB:.1f} GiB free"
    if not whole:
        return Finding(name, "problem", f"{text}, but what is read there is not what was written", "use another disk")
    if size.free < _GIB:
        return Finding(name, "warning", text, "checkpoints of a ResNet-50 take 0.3 GiB each: make room")
    return Finding(name, "ok", text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
