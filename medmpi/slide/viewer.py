"""A folder with a slide and its heatmap to look at in any browser, without a server: OpenSeadragon and local files."""

from __future__ import annotations

import html
import json
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from medmpi.files import replacing
from medmpi.slide.heatmap import Heatmap
from medmpi.slide.overlay import fitting, size_at, transparent
from medmpi.slide.reader import Pixels, Slide

_TILE = 512
# The canvas drawer: WebGL refuses pictures of file:// pages.
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<script src="openseadragon.min.js"></script>
<style>
body {{ margin: 0; font: 14px sans-serif; background: #222; color: #eee }}
#view {{ width: 100vw; height: calc(100vh - 40px); background: #fff }}
header {{ height: 40px; display: flex; gap: 1em; align-items: center; padding: 0 1em }}
#bar {{ width: 160px; height: 12px; background: linear-gradient(to right, {gradient}) }}
</style></head><body>
<header><b>{title}</b><span>{about}</span>
<label>heatmap <input id="opacity" type="range" min="0" max="1" step="0.05" value="0.7"></label>
<span>0</span><div id="bar"></div><span>1</span></header>
<div id="view"></div>
<script>
const viewer = OpenSeadragon({{id: "view", showNavigationControl: false, showNavigator: true,
  navigatorBackground: "#fff", drawer: "canvas", maxZoomPixelRatio: 8, imageSmoothingEnabled: true,
  tileSources: [{slide}]}});
const heat = {heat};
let layer = null;
const opacity = document.getElementById("opacity");
viewer.addTiledImage({{tileSource: {{type: "image", url: heat.url, buildPyramid: false}}, x: heat.x, y: heat.y,
  width: heat.width, clip: new OpenSeadragon.Rect(...heat.clip), opacity: +opacity.value,
  success: (event) => {{ layer = event.item; }}}});
opacity.addEventListener("input", () => layer && layer.setOpacity(+opacity.value));
</script></body></html>
"""


def write_viewer(folder: Path, heat: Heatmap, slide: Slide, *, side: int = 8192, name: str | None = None) -> Path:
    """Writes ``index.html``, the slide's tiles (deep zoom), the heatmap and the library; returns the page.

    The slide is shown at most ``side`` pixels wide or high.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("openseadragon.min.js", "openseadragon.LICENSE.txt"):
        with replacing(folder / file) as temporary:
            temporary.write_bytes(files("medmpi.slide").joinpath("static", file).read_bytes())
    downsample = fitting(heat, side)
    h, w = size_at(heat, downsample)
    _write_tiles(folder / "slide_files", slide, downsample, h, w)
    Image.fromarray(transparent(heat, name)).save(folder / "heatmap.png")
    step, (height, width) = heat.meta.step, heat.meta.level0_shape
    source = {
        "Image": {
            "xmlns": "http://schemas.microsoft.com/deepzoom/2008", "Url": "slide_files/", "Format": "jpg",
            "Overlap": "0", "TileSize": str(_TILE), "Size": {"Width": str(w), "Height": str(h)},
        }
    }  # fmt: skip
    # OpenSeadragon's unit is the slide's width; a point is drawn as the cell around it, cut at the slide's edge.
    place = {
        "url": "heatmap.png", "x": -step / 2 / width, "y": -step / 2 / width,
        "width": heat.scores.shape[1] * step / width, "clip": [0.5, 0.5, width / step, height / step],
    }  # fmt: skip
    from medmpi.slide.overlay import colours

    ramp = ", ".join("rgb({}, {}, {})".format(*c) for c in colours(np.linspace(0, 1, 9)).tolist())
    windows = int((heat.counts > 0).sum())
    about = f"scores of {name or heat.meta.classes[0]!r}, stride {heat.meta.stride}, {windows} windows"
    page = _PAGE.format(
        title=html.escape(Path(heat.meta.slide).name), about=html.escape(about), gradient=ramp,
        slide=json.dumps(source), heat=json.dumps(place),
    )  # fmt: skip
    with replacing(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "index.html"


def _write_tiles(folder: Path, slide: Slide, downsample: float, h: int, w: int) -> None:
    """A deep-zoom pyramid: level n has sides of at most 2^n pixels. Upper levels are made from the tiles below."""
    if folder.exists():
        shutil.rmtree(folder)
    top = int(np.ceil(np.log2(max(h, w, 2))))
    level_of = slide.level_below(downsample)
    factor = downsample / slide.downsamples[level_of]

    def from_slide(y: int, x: int, rows: int, columns: int) -> Pixels:
        y0, x0 = int(y * factor), int(x * factor)
        y1, x1 = int(np.ceil((y + rows) * factor)), int(np.ceil((x + columns) * factor))
        box = (x * factor - x0, y * factor - y0, (x + columns) * factor - x0, (y + rows) * factor - y0)
        source = Image.fromarray(slide.read(level_of, y0, x0, y1 - y0, x1 - x0))
        return np.asarray(source.resize((columns, rows), Image.Resampling.BOX, box))

    for level in range(top, -1, -1):
        (folder / str(level)).mkdir(parents=True)
        for y in range(0, h, _TILE):
            for x in range(0, w, _TILE):
                rows, columns = min(_TILE, h - y), min(_TILE, w - x)
                if level == top:
                    tile = from_slide(y, x, rows, columns)
                else:
                    tile = _from_below(folder / str(level + 1), y // _TILE, x // _TILE, rows, columns)
                Image.fromarray(tile).save(folder / str(level) / f"{x // _TILE}_{y // _TILE}.jpg", quality=85)
        h, w = (h + 1) // 2, (w + 1) // 2


def _from_below(folder: Path, row: int, column: int, rows: int, columns: int) -> Pixels:
    """A tile from the four of the finer level."""
    canvas = Image.new("RGB", (2 * _TILE, 2 * _TILE), (255, 255, 255))
    for dy in range(2):
        for dx in range(2):
            path = folder / f"{2 * column + dx}_{2 * row + dy}.jpg"
            if path.exists():
                with Image.open(path) as tile:
                    canvas.paste(tile, (dx * _TILE, dy * _TILE))
    return np.asarray(canvas.crop((0, 0, 2 * columns, 2 * rows)).resize((columns, rows), Image.Resampling.BOX))
