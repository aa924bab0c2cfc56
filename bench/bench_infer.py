"""Inference of whole networks, folded and tuned, beside torch (eager and frozen), OpenVINO and onnxruntime."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmpi import kernels, models, nn

from .harness import Case, Work


@dataclass(frozen=True)
class Job:
    """A model and the images it sees."""

    model: str
    size: int
    channels: int = 3
    classes: int = 10


JOBS = (
    Job("resnet18", 32),
    Job("resnet50", 64),
    Job("mini_xception", 32),
    Job("unet", 128, 1, 2),
    Job("inception_v1", 224),
)
BATCHES = (1, 32)


def cases(rivals: set[str], only: str = "") -> Iterator[Case]:
    """Each model with batches of 1 and of 32 images; the same weights and the same running statistics everywhere."""
    for job in JOBS:
        for batch in BATCHES:
            case = f"{job.model} {job.size}x{job.size} batch {batch}"
            if only not in case:  # tuning and building engines takes long
                continue
            x = np.random.default_rng(0).standard_normal((batch, job.size, job.size, job.channels), dtype=np.float32)
            graph, twin = pair(job)
            contenders: dict[str, Work] = {"medmpi": ours(graph, x)}
            if "torch" in rivals:
                contenders |= torch_runs(twin, x)
            if "openvino" in rivals:
                contenders["openvino"] = openvino_run(twin, x)
            if "onnxruntime" in rivals:
                contenders["onnxruntime"] = onnxruntime_run(twin, x)
            expected = contenders["medmpi"]()
            for name, work in contenders.items():
                found = np.asarray(work(), np.float32)
                if name != "medmpi" and job.model == "unet":
                    found = found.transpose(0, 2, 3, 1)
                if np.abs(found - expected).max() > 1e-3 * np.abs(expected).max():
                    raise SystemExit(f"bench infer: {name} gives another result for {job.model}")
            yield Case(case, contenders, extra={"group": f"batch {batch}"})


def pair(job: Job) -> tuple[nn.Graph, Any]:
    """Our network and torch's with the same weights, in evaluation mode."""
    import torch

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "models"))
    import torch_models

    graph = models.build(job.model, classes=job.classes, channels=job.channels, image_size=job.size).fuse()
    nn.Parameters(graph, seed=0)
    stem = {"stem": "small" if job.size <= 64 else "imagenet"} if job.model not in ("unet", "mini_xception") else {}
    twin = torch_models.build(job.model, classes=job.classes, channels=job.channels, **stem)
    state = nn.checkpoint.state_dict(graph)
    twin.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return graph, twin.eval()


def ours(graph: nn.Graph, x: Any) -> Work:
    """Batch normalisation folded, algorithms and samples at a time tuned for this batch, kernel calls recorded."""
    session = nn.Session.tuned(graph.fold(), x.shape)
    return lambda: session(x)[0]


def torch_runs(model: Any, x: Any) -> dict[str, Work]:
    """Eager in both layouts, with convolutions and normalisations fused by torch's own tool, and frozen TorchScript."""
    import torch
    import torch.fx.experimental.optimization as optimization

    runs: dict[str, Work] = {}
    try:
        fused = optimization.fuse(model)
    except torch.fx.proxy.TraceError:  # a model that looks at its input's size; the frozen one is fused all the same
        fused = model
    for name, fmt in (("torch_nchw", torch.contiguous_format), ("torch_nhwc", torch.channels_last)):
        tx = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=fmt)
        net = fused.to(memory_format=fmt)

        def work(net: Any = net, tx: Any = tx) -> Any:
            with torch.inference_mode():
                return net(tx)

        runs[name] = work
        if fmt == torch.contiguous_format:  # freezing lays the weights out anew, whatever the input's layout
            with torch.inference_mode():
                frozen = torch.jit.optimize_for_inference(torch.jit.trace(model, tx))

            def scripted(net: Any = frozen, tx: Any = tx) -> Any:
                with torch.inference_mode():
                    return net(tx)

            runs["torch_frozen"] = scripted
    return runs


def _onnx(model: Any, x: Any) -> bytes:
    import torch

    file = io.BytesIO()
    tx = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    torch.onnx.export(model, (tx,), file, dynamo=False, input_names=["x"])
    return file.getvalue()


def openvino_run(model: Any, x: Any) -> Work:
    """float32, as many threads as ours, latency mode."""
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": str(kernels.threads()), "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1",
    }  # fmt: skip
    network = core.read_model(_onnx(model, x))
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    tensor = ov.Tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    request.set_input_tensor(tensor)

    def work() -> Any:
        request.infer()
        return request.get_output_tensor(0).data

    return work


def onnxruntime_run(model: Any, x: Any) -> Work:
    """float32, all graph optimisations, as many threads as ours."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = kernels.threads()
    options.inter_op_num_threads = 1
    # its threads spin during a run and not after it, or they would take a core from whoever comes next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(_onnx(model, x), options, providers=["CPUExecutionProvider"])
    feed = {"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2))}
    return lambda: session.run(None, feed)[0]
