"""Every setting of a training run: its name, default, meaning and limits. The one place that lists them.

Flags and TOML keys are made from these fields: ``batch_size`` is ``--batch-size`` and the key ``batch-size`` (or
``batch_size``). Nothing here imports numpy or MPI, so that ``--help`` is immediate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MODELS = ("resnet18", "resnet34", "resnet50", "alexnet", "mini_xception", "inception_v1", "unet", "valid_cnn")
SCHEDULES = ("constant", "step", "cosine", "plateau", "inverse_time", "inverse_time_compound", "noise")


def _option(default: Any, group: str, help: str, **limits: Any) -> Any:
    """A field with its help text; limits: choices=, low= and high= (inclusive), above= and below= (not)."""
    return field(default=default, metadata={"group": group, "help": help, **limits})


@dataclass(frozen=True)
class Options:
    """The settings of one run, after the file and the flags have been merged."""

    data: str = _option(
        "phantom",
        "data",
        "dataset: phantom, npz:FILE, hdf5:FILE, cifar10:DIR, folder:DIR, pairs:DIR, nifti:DIR or cbis-ddsm:DIR; "
        "options follow, as in phantom:size=64,samples=2000 and folder:DIR?window=40/400",
        metavar="SPEC",
    )
    task: str = _option(
        "auto", "data", "what to learn (auto: what the data holds)", choices=("auto", "classification", "segmentation")
    )
    image_size: tuple[int, ...] | None = _option(
        None, "data", "resize images to this size, one number or height,width", low=1, metavar="N"
    )
    val_fraction: float = _option(
        0.1, "data", "share of the training split used for validation where none is given", above=0.0, below=1.0
    )
    augment: str = _option(
        "auto",
        "data",
        "none, or a list of flip, vflip, rotate90, crop[:pixels], rotate[:degrees], zoom, brightness, contrast, "
        "color[:strength]; auto is flip and a crop by 1/16",
        metavar="LIST",
    )
    workers: int = _option(1, "data", "loader threads per rank", low=1, high=64)
    class_weights: str = _option(
        "none", "data", "weigh classes in the loss by their inverse frequency", choices=("none", "balanced")
    )

    focal_gamma: float = _option(
        0.0, "data", "focal loss: count easy samples less, which helps rare classes; 2 is usual, 0 is off", low=0.0,
        high=10.0,
    )  # fmt: skip

    model: str = _option("resnet18", "model", "network", choices=MODELS)
    stem: str = _option(
        "auto",
        "model",
        "first layers: small keeps the size, imagenet quarters it; auto goes by the image",
        choices=("auto", "small", "imagenet"),
    )
    width: int | None = _option(
        None, "model", "channels of the first stage, where the network has a choice (default 64; unet 32)", low=1
    )
    dropout: float | None = _option(None, "model", "dropout probability, where the network has one", low=0.0, below=1.0)

    init: str | None = _option(
        None,
        "model",
        "start from a .safetensors file with torch's names (of torchvision, timm or a run) or from a run folder",
        metavar="FILE",
    )
    freeze: str = _option(
        "none",
        "model",
        "do not train: features (all but the last layer), or a list of layers such as conv1,bn1,layer1",
        metavar="LIST",
    )
    layer_lr: str = _option(
        "1",
        "optimisation",
        "learning rates by layer: a factor per block on the way from the last to the first (0.7), or a list such as "
        "layer1=0.1,fc=2",
        metavar="RATES",
    )

    epochs: int = _option(
        0, "optimisation", "passes over the training split (0: 8, for segmentation as many as make 250 steps)", low=0
    )
    max_steps: int | None = _option(None, "optimisation", "stop after this many steps in all", low=1)
    batch_size: int = _option(
        0, "optimisation", "images per step over all ranks (0: 64, for segmentation 16 or 8)", low=0
    )
    optimizer: str = _option(
        "auto",
        "optimisation",
        "update rule (auto: sgd, for segmentation adam)",
        choices=("auto", "sgd", "adam", "adamw"),
    )
    lr: float | None = _option(
        None, "optimisation", "learning rate (default 0.05 for sgd, 0.001 for adam, adamw)", above=0.0
    )
    momentum: float = _option(0.9, "optimisation", "of sgd", low=0.0, below=1.0)
    nesterov: bool = _option(False, "optimisation", "Nesterov's form of momentum")
    weight_decay: float = _option(5e-4, "optimisation", "L2 penalty (decoupled with adamw)", low=0.0)
    schedule: str = _option("cosine", "optimisation", "how the learning rate changes", choices=SCHEDULES)
    milestones: tuple[int, ...] = _option(
        (), "optimisation", "epochs at which 'step' multiplies by gamma", low=1, metavar="LIST"
    )
    gamma: float = _option(0.1, "optimisation", "factor of 'step' and 'plateau'", above=0.0, below=1.0)
    decay: float = _option(0.1, "optimisation", "lambda per epoch of 'inverse_time'", low=0.0)
    patience: int = _option(3, "optimisation", "epochs without progress before 'plateau' reduces the rate", low=0)
    warmup_epochs: float | None = _option(
        None, "optimisation", "epochs of linear warm-up (default 1, at most a fifth of all)", low=0.0
    )
    accumulate: int = _option(
        1,
        "optimisation",
        "batches whose gradients make an update, which so has more images than memory",
        low=1,
    )
    grow_batch: str = _option(
        "none",
        "optimisation",
        "double 'accumulate' when the gradients' noise scale passes twice an update's images (noise) or after "
        "'patience' epochs without progress (plateau), instead of reducing the rate",
        choices=("none", "noise", "plateau"),
    )
    max_accumulate: int = _option(16, "optimisation", "where 'grow-batch' ends", low=1)
    scale_lr_from: int | None = _option(
        None,
        "optimisation",
        "the rate is meant for updates of so many images: scale it linearly to those of this run, and begin warm-up "
        "at the unscaled rate",
        low=1,
        metavar="IMAGES",
    )
    clip_norm: float | None = _option(None, "optimisation", "limit of the gradient's global norm", above=0.0)
    early_stopping: int = _option(0, "optimisation", "stop after this many epochs without progress; 0 never", low=0)
    seed: int = _option(0, "optimisation", "of weights, order, augmentation and dropout", low=0, high=2**62)

    sync_batchnorm: bool = _option(True, "parallel", "batch statistics over all ranks, so that N ranks train as one")
    reproducible: bool = _option(
        False, "parallel", "same bits on any number of ranks: gradients are summed exactly, at about half the speed"
    )
    parallel: str = _option(
        "manual",
        "parallel",
        "auto measures layers and network and chooses replicas, stages and micro-batches (see 'medmpi plan')",
        choices=("manual", "auto"),
    )
    replicas: int | None = _option(None, "parallel", "data-parallel copies (default: all ranks)", low=1)
    stages: int = _option(1, "parallel", "parts of the network's layers, each on ranks of its own", low=1)
    cuts: str | None = _option(
        None,
        "parallel",
        "layers that begin the later stages, by name or number (default: by measured times)",
        metavar="LIST",
    )
    tiles: int = _option(
        1, "parallel", "parts of each image's rows, each on ranks of its own: for images that need much memory", low=1
    )
    micro_batches: int = _option(
        0,
        "parallel",
        "pieces in which a replica's share of a batch goes through the stages (0: 1 with batch normalisation, which "
        "needs the whole batch, else 4 per stage); with --no-sync-batchnorm each has batch statistics of its own",
        low=0,
    )
    pipeline: str = _option(
        "1f1b",
        "parallel",
        "order of the micro-batches' passes: one forward, one backward, or all forward first (what batch statistics "
        "over several micro-batches need anyway)",
        choices=("1f1b", "gpipe"),
    )
    average_every: int = _option(
        0,
        "parallel",
        "ranks train alone and average their weights after so many updates, with batch statistics of their own "
        "(local SGD); 0: gradients are summed at every update",
        low=0,
    )
    wire: str = _option(
        "fp32",
        "parallel",
        "what gradients travel as between nodes: bf16 halves the bytes and rounds each to eight significant bits",
        choices=("fp32", "bf16"),
    )
    balance: bool = _option(
        False, "parallel", "let the ranks' shares of a batch follow their measured speed; the batches stay the same"
    )
    fuse: bool = _option(
        True, "parallel", "run convolution, normalisation, addition and ReLU in one where the model allows"
    )
    device: str = _option("cpu", "parallel", "where kernels run", choices=("cpu", "cuda"))
    precision: str = _option("fp32", "parallel", "compute precision", choices=("fp32", "tf32", "bf16"))
    cuda_graph: bool = _option(
        True, "parallel", "--device cuda: capture a step's passes in a CUDA graph, to the same bits in less time"
    )
    threads: int | None = _option(
        None, "parallel", "OpenMP threads per rank (default: cores / ranks of the node)", low=1
    )
    timeout: float = _option(300.0, "parallel", "seconds a rank may keep the others waiting", above=0.0)

    out: str | None = _option(None, "run", "run folder (default: runs/NAME, numbered if taken)", metavar="DIR")
    name: str | None = _option(None, "run", "name of the run (default: model and data)")
    resume: bool = _option(False, "run", "continue the run folder's newest good checkpoint, if there is one")
    checkpoint_every: int = _option(
        0, "run", "steps between checkpoints within an epoch; 0: at the end of each epoch only", low=0
    )
    timeline: int = _option(
        0, "run", "record so many steps of all ranks into timeline.json, for chrome://tracing; 0: none", low=0
    )
    report: bool = _option(True, "run", "write report.html with plots at the end")
    quiet: bool = _option(False, "run", "print warnings and the result only")
