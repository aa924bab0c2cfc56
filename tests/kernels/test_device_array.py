"""Arrays on a device, real or emulated: what they are made of, where they go, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from medmpi import kernels
from medmpi.kernels import _core
from medmpi.kernels.arrays import may_share_memory, on_device

needs_device = pytest.mark.skipif(not kernels.devices(), reason=f"no CUDA device: {kernels.missing_device()}")


class Foreign:
    """An array of another library: it shows ``array`` by one protocol alone."""

    def __init__(self, array, **changes):
        self.kept, self.shape, self.dtype = array, array.shape, array.dtype
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}


class ForeignTensor:
    """The same by DLPack."""

    def __init__(self, array):
        self._array, self.shape = array, array.shape

    def __dlpack__(self, *, stream):
        return self._array.__dlpack__(stream=stream)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


@pytest.mark.skipif(bool(kernels.devices()), reason="this machine has a device")
def test_without_a_device_the_reason_is_named():
    assert "cuda" not in kernels.backends()
    for make in (lambda: kernels.empty((3,), device="cuda"), lambda: kernels.to_device(np.zeros(3, np.float32))):
        with pytest.raises(RuntimeError, match=r"there is no CUDA device: .+"):
            make()
    with pytest.raises(ValueError, match="index is 0, this machine has 0"):
        kernels.use_device(0)
    kernels.synchronize()

    class Elsewhere:
        shape = (3,)
        __cuda_array_interface__ = {"shape": shape, "typestr": "<f4", "data": (4096, False), "version": 3}  # noqa: RUF012

    with pytest.raises(TypeError, match="x is on a CUDA device"):
        kernels.relu(Elsewhere())


def test_names_of_devices_and_precisions():
    with pytest.raises(ValueError, match="expected 'cpu' or 'cuda'"):
        kernels.empty((1,), device="gpu")
    with pytest.raises(ValueError, match="expected fp32, tf32 or bf16"):
        kernels.set_precision("fp16")
    before = kernels.precision()
    kernels.set_precision("bf16")
    assert kernels.precision() == "bf16"
    kernels.set_precision(before)


@needs_device
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "uint16", "int32", "int64"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_there_and_back(dtype, shape):
    host = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    device = kernels.to_device(host)
    assert (device.shape, device.dtype, device.ndim) == (host.shape, host.dtype, host.ndim)
    assert (device.size, device.nbytes) == (host.size, host.nbytes)
    back = kernels.to_host(device)
    assert back.dtype == host.dtype
    np.testing.assert_array_equal(back, host)
    out = np.empty_like(host)
    assert kernels.to_host(device, out=out) is out or out.shape == ()
    np.testing.assert_array_equal(out, host)


@needs_device
def test_parts_share_memory():
    host = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    device = kernels.to_device(host)
    np.testing.assert_array_equal(device[1:3].numpy(), host[1:3])
    np.testing.assert_array_equal(device[-1].numpy(), host[-1])
    np.testing.assert_array_equal(device.reshape(6, -1).numpy(), host.reshape(6, 4))
    device[1] = np.full((3, 2), 7, np.float32)
    device[2:][...] = 0
    host[1], host[2:] = 7, 0
    np.testing.assert_array_equal(device.numpy(), host)
    assert may_share_memory(device, device[3:])
    assert not may_share_memory(device[:2], device[2:])
    assert not may_share_memory(device, device.copy())
    assert not may_share_memory(device, host)
    assert len(device) == 4


@needs_device
@pytest.mark.parametrize(
    ("key", "message"), [(4, "out of range"), (slice(0, 4, 2), "step 2"), ((0, 1), "stay contiguous"), (None, "stay")]
)
def test_parts_that_are_not_contiguous_are_refused(key, message):
    with pytest.raises(IndexError, match=message):
        kernels.empty((4, 2), device="cuda")[key]


@needs_device
def test_assignments_that_do_not_fit():
    device = kernels.empty((2, 3), device="cuda")
    with pytest.raises(ValueError, match=r"shape \(3, 2\), expected \(2, 3\)"):
        device[...] = np.zeros((3, 2), np.float32)
    with pytest.raises(TypeError, match="float64, expected float32"):
        device[...] = np.zeros((2, 3))
    with pytest.raises(TypeError, match="C-contiguous"):
        device[...] = np.zeros((3, 2), np.float32).T
    with pytest.raises(ValueError, match="expected 6 values"):
        device.reshape(4)
    with pytest.raises(TypeError, match="expected float32"):
        kernels.empty((2,), np.complex64, device="cuda")
    with pytest.raises(ValueError, match="too large"):
        kernels.empty((1 << 40, 1 << 40), device="cuda")


@needs_device
def test_nothing_is_copied_to_the_host_unasked():
    device = kernels.empty((2,), device="cuda")
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(device)
    assert "shape=(2,)" in repr(device)


@needs_device
def test_host_and_device_do_not_mix():
    host = np.ones(4, np.float32)
    device = kernels.to_device(host)
    with pytest.raises(ValueError, match="add: b is in host memory, expected it on the device as a; copy it with to_d"):
        kernels.add(device, host)
    with pytest.raises(ValueError, match="out is on the device, expected it in host memory as x"):
        kernels.relu(host, out=device)
    with pytest.raises(TypeError, match="relu: x has dtype float64, expected float32"):
        kernels.relu(kernels.to_device(np.ones(4)))
    with pytest.raises(ValueError, match="cuda"):
        kernels.use_backend("cuda")
    assert kernels.backends()[-1] == "cuda"


@needs_device
@pytest.mark.parametrize("kind", [Foreign, ForeignTensor])
def test_arrays_of_other_libraries_are_used_in_place(kind):
    device = kernels.to_device(np.arange(6, dtype=np.float32).reshape(2, 3))
    foreign = kind(device)
    assert on_device(foreign)
    got = kernels.add(foreign, foreign)
    assert isinstance(got, kernels.DeviceArray)
    np.testing.assert_array_equal(got.numpy(), 2 * device.numpy())
    assert kernels.add(foreign, foreign, out=foreign) is foreign
    np.testing.assert_array_equal(device.numpy(), got.numpy())


@needs_device
def test_arrays_of_other_libraries_that_do_not_fit():
    device = kernels.to_device(np.zeros((2, 3), np.float32))
    address = device.__cuda_array_interface__["data"][0]
    for changes, error, message in [
        ({"strides": (4, 8)}, TypeError, "not C-contiguous"),
        ({"data": (address, True)}, TypeError, "read-only"),
        ({"typestr": "<f2"}, TypeError, "float16"),
        ({"stream": 0}, ValueError, "stream 0"),
    ]:
        with pytest.raises(error, match=f"scale_|fill_|x .*{message}"):
            kernels.fill_(Foreign(device, **changes))
    kernels.fill_(Foreign(device, strides=(12, 4), stream=1), 2.0)
    assert (device.numpy() == 2).all()


@needs_device
def test_dlpack_keeps_memory_alive():
    before = kernels.device_memory_statistics()["in_use"]
    device = kernels.to_device(np.arange(1000, dtype=np.float32))
    view = _core.device_view(ForeignTensor(device))
    del device
    np.testing.assert_array_equal(view.numpy(), np.arange(1000))
    del view
    assert kernels.device_memory_statistics()["in_use"] == before
    unread = kernels.to_device(np.zeros(1000, np.float32)).__dlpack__()
    del unread
    assert kernels.device_memory_statistics()["in_use"] == before


@needs_device
def test_memory_is_used_again():
    device = kernels.empty((1000,), device="cuda")
    address = device.__cuda_array_interface__["data"][0]
    reserved = kernels.device_memory_statistics()["reserved"]
    del device
    again = kernels.empty((1000,), device="cuda")
    assert again.__cuda_array_interface__["data"][0] == address
    assert kernels.device_memory_statistics()["reserved"] == reserved


@needs_device
def test_threads_have_streams_of_their_own_and_wait_for_each_other():
    device = kernels.to_device(np.ones(100_000, np.float32))
    streams, results = [], []

    def work():
        streams.append(device.__cuda_array_interface__["stream"])
        for _ in range(5):
            kernels.add(device, device, out=device)
        results.append(device.numpy())

    mine = device.__cuda_array_interface__["stream"]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert streams[0] != mine
    assert (results[0] == 32).all()
    assert (kernels.add(device, device).numpy() == 64).all()
    kernels.synchronize()


@needs_device
def test_a_recording_runs_again_on_the_device():
    x = kernels.to_device(np.array([-1, 2], np.float32))
    with kernels.Recording() as recording:
        y = kernels.relu(x)
    x[...] = np.array([3, -4], np.float32)
    recording.run()
    np.testing.assert_array_equal(y.numpy(), [3, 0])


def run_with(cap, code):
    environment = {**os.environ, "MEDMPI_DEVICE_MEMORY": cap}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


@needs_device
def test_the_cap_holds_and_is_named():
    code = (
        "from medmpi import kernels as K\n"
        "kept = [K.empty((1 << 18,), device='cuda') for _ in range(3)]\n"
        "del kept[:]\n"
        "kept = K.empty((900_000,), device='cuda')\n"  # fits once the free blocks are handed back
        "K.empty((1 << 18,), device='cuda')"
    )
    done = run_with("4M", code)
    assert done.returncode == 1
    assert "RuntimeError: out of device memory: 1.0 MiB wanted" in done.stderr
    assert "cap 4.0 MiB (MEDMPI_DEVICE_MEMORY)" in done.stderr
    bad = run_with("lots", "from medmpi import kernels as K; K.empty((1,), device='cuda')")
    assert "MEDMPI_DEVICE_MEMORY is 'lots', expected a number of bytes such as 8G" in bad.stderr
