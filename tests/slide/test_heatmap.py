"""Heatmaps against a naive sliding window, on slides with one-pixel landmarks and tissue at every edge."""

from __future__ import annotations

import numpy as np
import pytest

from medmpi import models, nn
from medmpi.data import DataError
from medmpi.slide.heatmap import assemble, load_heatmap, meta_for
from medmpi.slide.predict import Predictor
from medmpi.slide.prepare import PrepareOptions, prepare
from medmpi.slide.store import Store, open_source
from tests.slide.conftest import classifier_of, tissue_slide, write_slide

CONTEXT = nn.Context(train=False)


def naive_heatmap(image, classifier, stride, covered):
    """What a heatmap is, in the plainest way: one window at a time around every point, glass beyond the slide."""
    height, width = image.shape[:2]
    h, w = classifier.window
    rows, columns = -(-height // stride), -(-width // stride)
    heat = np.zeros((rows, columns))
    padded = np.full((height + 2 * h, width + 2 * w, 3), 255, np.uint8)
    padded[h : h + height, w : w + width] = image
    for i in range(rows):
        for j in range(columns):
            y, x = i * stride, j * stride
            if not covered(y, x):
                continue
            top, left = y - h // 2 + h, x - w // 2 + w
            window = padded[top : top + h, left : left + w]
            net_input = ((window / 255 - classifier.mean) / classifier.std).astype(np.float32)
            (logits,), _ = classifier.graph.forward(np.ascontiguousarray(net_input[None]), context=CONTEXT)
            z = logits[0].astype(np.float64)
            e = np.exp(z - z.max())
            heat[i, j] = e[1] / e.sum()
    return heat


def every_pixel_counts(window, engine="windowed"):
    """Each place in the window has a weight of its own, so a shift by one shows; "shared" has something to share."""
    graph = nn.Graph()
    if engine == "shared":
        graph.add("conv", nn.Conv2d(3, 4, 3, stride=2, relu=True))
        side = (window - 3) // 2 + 1
        graph.add("flat", nn.Flatten())
        graph.add("fc", nn.Linear(side * side * 4, 2))
        return classifier_of(graph, window, scale=1.0)
    graph.add("flat", nn.Flatten())
    graph.add("fc", nn.Linear(window * window * 3, 2))
    return classifier_of(graph, window, scale=1.0)


def heatmap_of(tmp_path, image, classifier, stride, *, engine, pixels="webp", group_size=3, tissue="hs", patch=224):
    path = tmp_path / "slide.tif"
    if not path.exists():
        write_slide(path, image)
    folder = tmp_path / pixels
    folder.mkdir(exist_ok=True)
    options = PrepareOptions(pixels=pixels, group_size=group_size, tissue=tissue, patch=patch)
    store_path, meta, _ = prepare(path, folder, options)
    predictor = Predictor(classifier, stride, patch=meta.patch, engine=engine)
    out = tmp_path / f"{engine}-{pixels}-{stride}.h5"
    with Store(store_path) as store, open_source(store) as slide:
        about = meta_for(store, stride, classifier.columns, classifier.digest)
        assemble(out, store, about, (predictor.group(store, g, slide) for g in range(meta.groups)))
        return load_heatmap(out), store.lookup >= 0


@pytest.mark.parametrize(
    ("stride", "shape", "window"),
    [(1, (61, 110), 64), (14, (333, 463), 224), (16, (333, 463), 224), (64, (730, 1150), 224), (224, (730, 1150), 224)],
)
@pytest.mark.parametrize("engine", ["windowed", "shared"])
def test_heatmap_equals_the_naive_window(tmp_path, stride, shape, window, engine):
    image = tissue_slide(shape)
    classifier = every_pixel_counts(window, engine)
    groups = 3 if engine == "windowed" else 7
    found, chosen = heatmap_of(tmp_path, image, classifier, stride, engine=engine, group_size=groups)
    want = naive_heatmap(image, classifier, stride, lambda y, x: chosen[y // 224, x // 224])
    assert np.isfinite(found.scores).all()
    assert found.of().shape == want.shape
    assert want.std() > 0.005  # windows differ
    np.testing.assert_allclose(found.of(), want, atol=1e-5)
    rows, columns = np.mgrid[: want.shape[0], : want.shape[1]] * stride
    np.testing.assert_array_equal(found.counts, chosen[rows // 224, columns // 224])
    assert found.counts.dtype == np.uint32
    for edge in (chosen[0], chosen[-1], chosen[:, 0], chosen[:, -1]):
        assert edge.any()


def test_outside_tissue_is_zero_and_never_nan(tmp_path):
    image = np.full((1200, 1300, 3), 250, np.uint8)
    image[30:300, 600:900] = (190, 90, 160)
    found, chosen = heatmap_of(tmp_path, image, every_pixel_counts(224), 64, engine="windowed")
    assert 0 < chosen.sum() < chosen.size / 2
    outside = found.counts == 0
    assert outside.any()
    assert (found.scores[outside] == 0).all()


def test_inception_v1_falls_back_to_windows_and_says_why(tmp_path):
    classifier = classifier_of(models.build("inception_v1", classes=2, image_size=224), 224, scale=40.0)
    predictor = Predictor(classifier, 64)
    assert "windowed" in predictor.why
    assert "conv1.conv pads with zeros" in predictor.why
    image = tissue_slide((250, 300))
    found, chosen = heatmap_of(tmp_path, image, classifier, 64, engine="auto")
    want = naive_heatmap(image, classifier, 64, lambda y, x: chosen[y // 224, x // 224])
    np.testing.assert_allclose(found.of(), want, atol=1e-5)


def test_coordinates_only_give_the_same_bits(tmp_path):
    image = tissue_slide((500, 643))
    classifier = classifier_of(models.build("valid_cnn", classes=2, image_size=224), 224, scale=40.0)
    stored, _ = heatmap_of(tmp_path, image, classifier, 16, engine="auto")
    read, _ = heatmap_of(tmp_path, image, classifier, 16, engine="auto", pixels="none")
    np.testing.assert_array_equal(stored.scores, read.scores)


def test_missing_patches_are_listed_and_never_guessed(tmp_path):
    classifier = every_pixel_counts(64)
    write_slide(tmp_path / "slide.tif", tissue_slide((500, 643)))
    path, meta, _ = prepare(tmp_path / "slide.tif", tmp_path, PrepareOptions(group_size=3))
    predictor = Predictor(classifier, 64)
    with Store(path) as store:
        scores = [predictor.group(store, g) for g in range(meta.groups)]
        about = meta_for(store, 64, classifier.columns, "")
        with pytest.raises(DataError, match=r"3 of 9 patches are missing, those with points at \(0, 0\)"):
            assemble(tmp_path / "heat.h5", store, about, scores[1:])
        assert not (tmp_path / "heat.h5").exists()
        with pytest.raises(DataError, match="came twice"):
            assemble(tmp_path / "heat.h5", store, about, [*scores, scores[0]])
        assemble(tmp_path / "heat.h5", store, about, scores[1:], partial=True)
    heat = load_heatmap(tmp_path / "heat.h5")
    assert len(heat.meta.missing) == 3
    assert heat.counts[0, 0] == 0
