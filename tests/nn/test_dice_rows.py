"""The Dice loss of images of which several ranks have some rows each."""

import numpy as np

from medmpi import nn


class Together:
    """Stands in for the other ranks: first notes what each brings, then gives all the sum."""

    def __init__(self, tiles):
        self.tiles, self.brought = tiles, []

    def sum(self, array):
        self.brought.append(array.copy())
        return sum(self.total) if hasattr(self, "total") else array


def test_shares_of_rows_add_up():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 12, 5, 4), np.float32)
    labels = rng.integers(0, 4, (3, 12, 5))
    weight = [1.0, 2.0, 0.5, 3.0]
    for background in (True, False):
        whole = nn.DiceCrossEntropy(weight, smooth=1.0, include_background=background)
        expected, gradient = whole(logits, labels)
        parts = [(np.ascontiguousarray(logits[:, a:b]), labels[:, a:b].copy()) for a, b in ((0, 5), (5, 12), (12, 12))]
        joint = Together(3)
        split = nn.DiceCrossEntropy(weight, smooth=1.0, include_background=background, rows=joint)
        total = sum(split.denominators(part) for _, part in parts)
        np.testing.assert_allclose(total, whole.denominators(labels))
        for piece in parts:
            split(*piece, denominator=total)
        joint.total = list(joint.brought)
        found = [split(*piece, denominator=total) for piece in parts]
        assert np.isclose(sum(value for value, _ in found), expected, rtol=1e-6)
        np.testing.assert_allclose(np.concatenate([g for _, g in found], 1), gradient, rtol=1e-4, atol=1e-8)
