"""Temperature, calibration errors, Brier score."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi.evaluation import brier_score, calibrate, expected_calibration_error, reliability, softmax
from medmpi.evaluation.calibration import fit_temperature, nll


def drawn(temperature, n=20000, seed=0):
    """Labels drawn from the softmax of logits, which are then given too steep by the temperature."""
    rng = np.random.default_rng(seed)
    true = rng.standard_normal((n, 3)) * 1.5
    p = softmax(true)
    labels = (rng.random((n, 1)) > p.cumsum(1)).sum(1)
    return true * temperature, labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_is_found(temperature):
    logits, labels = drawn(temperature)
    found = calibrate(logits, labels, drawn(temperature, seed=1))
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.ece_after < 0.02
    if temperature != 1:
        assert found.ece_before > 0.08
        assert found.nll_after < found.nll_before
        assert found.brier_after < found.brier_before


def test_no_other_temperature_is_better():
    logits, labels = drawn(2.0, 500)
    best = fit_temperature(logits, labels)
    for other in (0.5, 0.99, 1.01, 2.0):
        assert nll(logits, labels, best) <= nll(logits, labels, best * other)
    certain = np.array([[5.0, 0.0], [0.0, 5.0]])
    assert fit_temperature(certain, np.array([0, 1])) == pytest.approx(0.01, rel=1e-4)
    with pytest.raises(ValueError, match="expected some"):
        fit_temperature(logits[:0], labels[:0])


def test_errors_by_hand():
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.0, 1.0]])
    labels = np.array([0, 1, 1, 1])
    mean, accuracy, counts = reliability(p, labels, bins=10)
    assert counts.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 2, 1]
    assert accuracy[8] == 0.5
    assert mean[8] == pytest.approx(0.9)
    assert expected_calibration_error(p, labels, 10) == pytest.approx((0.4 + 2 * 0.4 + 0) / 4)
    assert brier_score(p, labels) == pytest.approx((0.02 + 1.62 + 0.32 + 0) / 4)
