"""Layers, graphs, parameters, losses, optimizers, schedules and checkpoints, on the kernels alone."""

from . import checkpoint, losses, optim, schedule
from .exact import ExactGradients
from .fold import FoldedConv2d, tune
from .gradcam import grad_cam
from .graph import Graph, Node, NodeInfo
from .initialise import Initializer, constant, fan_uniform, kaiming_normal, normal, truncated_normal, uniform
from .layer import Context, Layer, ParameterSpec, Statistics
from .layers_conv import Conv2d, ConvTranspose2d
from .layers_linear import Flatten, Linear
from .layers_norm import BatchNorm2d
from .layers_pointwise import Add, Concat, Dropout, ReLU
from .layers_pool import AdaptiveAvgPool2d, AvgPool2d, GlobalAvgPool2d, MaxPool2d
from .layers_resize import Pad2d, Upsample
from .losses import CrossEntropy, DiceCrossEntropy, Loss
from .noise import GradientNoise
from .optim import SGD, Adam, AdamW, Optimizer, clip_gradients, gradient_norm
from .parameters import Parameters
from .pretrained import Loaded, head_of, load_pretrained
from .schedule import Schedule
from .session import Session

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "AdaptiveAvgPool2d",
    "Add",
    "AvgPool2d",
    "BatchNorm2d",
    "Concat",
    "Context",
    "Conv2d",
    "ConvTranspose2d",
    "CrossEntropy",
    "DiceCrossEntropy",
    "Dropout",
    "ExactGradients",
    "Flatten",
    "FoldedConv2d",
    "GlobalAvgPool2d",
    "GradientNoise",
    "Graph",
    "Initializer",
    "Layer",
    "Linear",
    "Loaded",
    "Loss",
    "MaxPool2d",
    "Node",
    "NodeInfo",
    "Optimizer",
    "Pad2d",
    "ParameterSpec",
    "Parameters",
    "ReLU",
    "Schedule",
    "Session",
    "Statistics",
    "Upsample",
    "checkpoint",
    "clip_gradients",
    "constant",
    "fan_uniform",
    "grad_cam",
    "gradient_norm",
    "head_of",
    "kaiming_normal",
    "load_pretrained",
    "losses",
    "normal",
    "optim",
    "schedule",
    "truncated_normal",
    "tune",
    "uniform",
]
