"""What the steps do to pixels, against formulas and scipy."""

import numpy as np
import pytest
from scipy import ndimage

from medmpi.data import DataError
from medmpi.data.medical import MedicalImage
from medmpi.prepare.options import Options, parse
from medmpi.prepare.steps import fitted, mean_and_std, prepare_frame
from medmpi.train.config import ConfigError


def _options(*flags):
    return parse(["in", "--out", "out", *flags], "prepare")


def _image(pixels, format="picture", **others):
    bits = 8 * pixels.dtype.itemsize if pixels.dtype.kind == "u" else 0
    return MedicalImage("x", pixels.reshape(1, *pixels.shape[:2], -1), format, bits, **others)


def _random(dtype=np.uint8, shape=(40, 30)):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@pytest.mark.parametrize("bits", [8, 16])
def test_noise_reduction(bits):
    pixels = _random(np.uint16)
    top = 2**bits - 1
    levels = np.floor(pixels / 65535 * top + 0.5)
    result = prepare_frame(_image(pixels), 0, _options("--denoise=gaussian:1.5", f"--bits={bits}"), None).pixels[..., 0]
    assert result.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert np.abs(result - ndimage.gaussian_filter(levels, 1.5)).max() <= 0.51
    result = prepare_frame(_image(pixels), 0, _options("--denoise=median:5", f"--bits={bits}"), None).pixels[..., 0]
    assert np.array_equal(result, ndimage.median_filter(levels, 5))


def test_contrast():
    pixels = _random() // 3
    result = prepare_frame(_image(pixels), 0, _options("--contrast=gamma:0.5"), None).pixels[..., 0]
    assert np.array_equal(result, np.rint((pixels / 255) ** 0.5 * 255))
    result = prepare_frame(_image(pixels), 0, _options("--contrast=clahe:4"), None).pixels
    assert result.std() > 1.5 * pixels.std()
    deep = prepare_frame(_image(pixels.astype(np.uint16) * 257), 0, _options("--contrast=clahe:4", "--bits=16"), None)
    assert deep.pixels.std() > 1.5 * 257 * pixels.std()
    colour = _random(shape=(20, 20, 3))
    assert prepare_frame(_image(colour), 0, _options("--contrast=clahe,gamma:2"), None).pixels.shape == (20, 20, 3)


def test_normalisation_is_equation_1_with_its_parentheses():
    pixels = np.random.default_rng(0).normal(90, 20, (50, 50)).clip(0, 255).astype(np.uint8)
    result = prepare_frame(_image(pixels), 0, _options("--normalise=image"), None)
    z = (pixels / 255 - (pixels / 255).mean()) / (pixels / 255).std()
    assert np.array_equal(result.pixels[..., 0], np.rint((z.clip(-3, 3) + 3) / 6 * 255))
    assert "normalise by mean" in result.steps[-1]
    other = prepare_frame(_image(pixels), 0, _options("--normalise=dataset"), (0.5, 0.25)).pixels[..., 0]
    z = (pixels / 255 - 0.5) / 0.25
    assert np.array_equal(other, np.rint((z.clip(-3, 3) + 3) / 6 * 255))


def test_standard_deviation_of_zero():
    """All pixels equal: sigma is 0 and eq. 1 undefined; every pixel is the middle level then."""
    constant = np.full((9, 9), 77, np.uint8)
    result = prepare_frame(_image(constant), 0, _options("--normalise=image", "--contrast=clahe"), None)
    assert np.unique(result.pixels).tolist() == [128]
    assert mean_and_std([(81, 81 * 0.5, 81 * 0.25)]) == (0.5, 0.0)
    assert mean_and_std([]) == (0.0, 0.0)


def test_one_pixel_goes_through_every_step():
    flags = ("--denoise=gaussian:1,median:3", "--contrast=clahe,gamma:2", "--crop=breast", "--normalise=image")
    for size in ((), ("--image-size=4",)):
        result = prepare_frame(_image(np.array([[7]], np.uint8)), 0, _options(*flags, *size), None)
        assert result.pixels.shape == ((4, 4, 1) if size else (1, 1, 1))


def test_not_a_number():
    floats = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    floats[1, 1] = np.nan
    with pytest.raises(DataError, match="NaN"):
        prepare_frame(_image(floats), 0, _options("--window=full"), None)
    filled = prepare_frame(_image(floats), 0, _options("--window=full", "--nan=fill"), None)
    assert filled.pixels[1, 1, 0] == 0


def test_crop_and_size():
    pixels = np.zeros((100, 80), np.uint8)
    pixels[20:70, 10:40] = 150
    pixels[2:6, 70:78] = 255  # a label on the film
    result = prepare_frame(_image(pixels), 0, _options("--crop=breast"), None)
    assert result.box == (19, 9, 71, 41)
    assert result.pixels.shape == (52, 32, 1)
    middle = prepare_frame(_image(pixels), 0, _options("--crop=40x200"), None)
    assert middle.box == (30, 0, 70, 80)
    padded = prepare_frame(_image(pixels), 0, _options("--image-size=50", "--fit=pad"), None).pixels
    assert padded.shape == (50, 50, 1)
    assert not padded[:, :5].any()
    deep = fitted(_random(np.uint16)[..., None], (20, 15), "stretch")
    assert deep.dtype == np.uint16
    labels = fitted(np.array([[0, 300], [7, 9]], np.uint16)[..., None], (4, 4), "stretch", nearest=True)
    assert np.unique(labels).tolist() == [0, 7, 9, 300]


@pytest.mark.parametrize(
    ("flag", "match"),
    [
        ("--denoise=blur:1", "--denoise is blur:1, expected a list of gaussian, median, or none"),
        ("--denoise=median:4", "expected an odd whole number"),
        ("--denoise=gaussian", "expected gaussian:NUMBER"),
        ("--contrast=gamma:-1", "a number above 0"),
        ("--crop=all", "--crop is all"),
        ("--image-size=0", "--image-size is 0"),
        ("--window=bright", "--window is bright"),
        ("--shard=3/3", "k from 0 to n-1"),
        ("--bits=12", "invalid choice"),
        ("--previews=-1", "0 or more"),
        ("--colour", "unrecognized arguments"),
    ],
)
def test_settings_that_cannot_be(flag, match):
    with pytest.raises(ConfigError, match=match):
        _options(flag)
    assert isinstance(_options(), Options)
