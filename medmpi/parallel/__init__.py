"""Ranks: launching and guarding them, collective operations, the grid of model parts, pipelines, gradient buckets.

mpi4py is imported when ``start`` is called, and only here.
"""

from .balance import Balance
from .buckets import GradientBuckets
from .exact import ExactSums
from .grid import Grid
from .launch import start
from .pipeline import Pipeline
from .staged import StagedGradients
from .statistics import RankStatistics
from .timing import Account, Timer
from .update import NodeUpdate
from .work import Outcome, collect, pull
from .world import World

__all__ = [
    "Account",
    "Balance",
    "ExactSums",
    "GradientBuckets",
    "Grid",
    "NodeUpdate",
    "Outcome",
    "Pipeline",
    "RankStatistics",
    "StagedGradients",
    "Timer",
    "World",
    "collect",
    "pull",
    "start",
]
