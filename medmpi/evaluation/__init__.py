"""What a model's outputs are worth, on numpy arrays alone: curves, intervals, thresholds, calibration, masks."""

from .calibration import Calibration, brier_score, calibrate, expected_calibration_error, reliability, softmax
from .curves import average_precision, precision_recall_curve, roc_curve
from .intervals import Interval, bootstrap, delong, wilson
from .masks import Match, dice_per_image, instances, match_instances
from .operating import OperatingPoint, apply_threshold, choose_threshold

__all__ = [
    "Calibration",
    "Interval",
    "Match",
    "OperatingPoint",
    "apply_threshold",
    "average_precision",
    "bootstrap",
    "brier_score",
    "calibrate",
    "choose_threshold",
    "delong",
    "dice_per_image",
    "expected_calibration_error",
    "instances",
    "match_instances",
    "precision_recall_curve",
    "reliability",
    "roc_curve",
    "softmax",
    "wilson",
]
