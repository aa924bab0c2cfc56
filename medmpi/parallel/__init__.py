"""Ranks: launching and guarding them, collective operations, gradient buckets, statistics and time accounts.

mpi4py is imported when ``start`` is called, and only here.
"""

from .balance import Balance
from .buckets import GradientBuckets
from .exact import ExactSums
from .launch import start
from .statistics import RankStatistics
from .timing import Account, Timer
from .work import Outcome, collect, pull
from .world import World

__all__ = [
    "Account",
    "Balance",
    "ExactSums",
    "GradientBuckets",
    "Outcome",
    "RankStatistics",
    "Timer",
    "World",
    "collect",
    "pull",
    "start",
]
