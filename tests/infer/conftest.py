"""Small trained models."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmpi.parallel import launch as launch_module
from medmpi.train.main import main as train


def _train(*flags):
    if launch_module._guard is not None:
        launch_module._guard.stop = False
    words = ["--width=4", "--batch-size=8", "--epochs=1", "--no-report", "--threads=1", "--quiet", *map(str, flags)]
    assert train(words) == 0


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """A run folder, and the folder of 12-bit pictures (two classes) that it was trained on."""
    root = tmp_path_factory.mktemp("classifier")
    rng = np.random.default_rng(0)
    for k, name in enumerate(("dark", "light")):
        (root / "data" / name).mkdir(parents=True)
        for i in range(16):
            pixels = rng.integers(0, 1000, (24, 20)) + 2000 * k
            Image.fromarray(pixels.astype(np.uint16)).save(root / "data" / name / f"{i:02}.png")
    data = f"folder:{root / 'data'}?bits=12"
    _train(f"--data={data}", "--image-size=20", "--model=resnet18", f"--out={root / 'run'}", "--augment=none")
    return root / "run", root / "data"


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory):
    """A run folder of a U-Net, and the folder of volumes that it was trained on."""
    nibabel = pytest.importorskip("nibabel")
    root = tmp_path_factory.mktemp("segmenter")
    rng = np.random.default_rng(0)
    affine = np.array([[-1.5, 0, 0, 20], [0, 2, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1.0]])
    for place in ("images", "labels"):
        (root / "data" / place).mkdir(parents=True)
    for i in range(8):
        labels = np.zeros((20 + i, 24, 6), np.uint8)
        labels[5:12, 6:14, 1:5] = 1
        image = (rng.normal(50, 5, labels.shape) + 100 * labels).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, affine), root / "data" / "images" / f"v{i}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, affine), root / "data" / "labels" / f"v{i}.nii.gz")
    flags = ("--model=unet", "--width=8", "--epochs=12", "--lr=0.01", "--augment=none")
    _train(f"--data=nifti:{root / 'data'}", *flags, f"--out={root / 'run'}")
    return Path(root / "run"), root / "data"
