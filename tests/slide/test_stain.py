"""Stain normalisation: known stains are found, slides of other stains look alike, failures are told."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi.slide.stain import StainError, StainFit, apply, fit, transform_for

REFERENCE = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])


def stained(stains, strength=(1.0, 1.0), n=20000, seed=0):
    """Pixels of two sparse stains by Beer and Lambert; some have one, some both."""
    rng = np.random.default_rng(seed)
    amounts = rng.gamma(3.0, 0.25, (n, 2)) * strength
    only = rng.random(n)
    amounts[only < 0.3, 1] = 0.02
    amounts[only > 0.6, 0] = 0.02
    od = amounts @ (stains / np.linalg.norm(stains, axis=0)).T
    return np.clip(np.rint(256 * np.exp(-od) - 1), 0, 255).astype(np.uint8)


OTHER = np.array([[0.65, 0.07], [0.70, 0.99], [0.29, 0.11]])


@pytest.mark.parametrize(("method", "degrees"), [("macenko", 8), ("vahadane", 8)])
def test_known_stains_are_found(method, degrees):
    found = np.array(fit(method, stained(OTHER)).first).reshape(3, 2)
    want = OTHER / np.linalg.norm(OTHER, axis=0)
    angles = np.degrees(np.arccos(np.clip((found * want).sum(0), -1, 1)))
    assert angles.max() < degrees


@pytest.mark.parametrize("method", ["reinhard", "macenko", "vahadane"])
def test_two_stainings_of_one_tissue_look_alike(method):
    a, b = stained(REFERENCE, (1.0, 1.0)), stained(OTHER, (1.4, 0.7))
    before = np.abs(a.astype(float).mean(0) - b.astype(float).mean(0)).max()
    a2, b2 = (apply(fit(method, x), x.reshape(100, 200, 3)).reshape(-1, 3).astype(float) for x in (a, b))
    after = np.abs(a2.mean(0) - b2.mean(0)).max()
    assert before > 20
    assert after < before / 2.5


def test_white_stays_white():
    for method in ("macenko", "vahadane"):
        white = apply(fit(method, stained(OTHER)), np.full((4, 5, 3), 255, np.uint8))
        assert white.min() >= 253


def test_a_pixel_is_mapped_alike_in_every_tile():
    """Pointwise: sharing layers between windows stays exact."""
    pixels = stained(OTHER).reshape(100, 200, 3)
    for method in ("reinhard", "macenko", "vahadane"):
        found = StainFit.from_json(fit(method, pixels.reshape(-1, 3)).to_json())
        np.testing.assert_array_equal(apply(found, pixels)[30:50, 40:90], apply(found, pixels[30:50, 40:90].copy()))


def test_failures_are_told_and_never_raw_pixels():
    rng = np.random.default_rng(0)
    with pytest.raises(StainError, match="0 stained pixels"):
        fit("macenko", np.full((5000, 3), 250, np.uint8), "glass.svs")
    grey = np.repeat(rng.integers(20, 150, (5000, 1)), 3, axis=1).astype(np.uint8)
    with pytest.raises(StainError, match="one stain only"):
        fit("macenko", grey, "grey.svs")
    with pytest.raises(ValueError, match="method is 'he'"):
        fit("he", grey)
    assert transform_for(None) is None
    with pytest.raises(StainError, match=r"a\.svs: shows one stain only"):
        transform_for({"error": "shows one stain only", "slide": "a.svs"})
