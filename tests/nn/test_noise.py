"""The noise scale of gradients whose noise is known."""

import numpy as np
import pytest

from medmpi.nn import GradientNoise


@pytest.mark.parametrize(("batch", "true"), [(32, 100.0), (32, 3.0), (8, 80.0)])
def test_the_scale_of_known_noise_is_found(batch, true):
    """Gradients of a batch: G plus noise of variance tr(S) / batch, with tr(S) = true |G|^2."""
    random = np.random.default_rng(1)
    n = 4000
    signal = random.standard_normal(n)
    signal /= np.linalg.norm(signal)
    noise = GradientNoise(n)
    assert noise.scale(batch) is None
    for _ in range(200):
        spread = random.standard_normal(n) * np.sqrt(true / batch / n)
        noise.observe((signal + spread).astype(np.float32))
    assert noise.scale(batch) == pytest.approx(true, rel=0.25)


def test_gradients_that_are_not_finite_are_left_out_and_state_comes_back():
    random = np.random.default_rng(2)
    a, b = GradientNoise(50), GradientNoise(50)
    gradients = random.standard_normal((20, 50)).astype(np.float32)
    for g in gradients[:10]:
        a.observe(g)
    a.observe(np.full(50, np.nan, np.float32))
    assert a.updates == 10
    b.load_state_dict(a.state_dict(), a.mean.copy())
    for g in gradients[10:]:
        a.observe(g)
        b.observe(g)
    assert a.scale(4) == b.scale(4)
    with pytest.raises(ValueError, match="mean has shape"):
        b.load_state_dict(a.state_dict(), np.zeros(3, np.float32))
