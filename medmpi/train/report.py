"""report.html: one file that shows a run; every picture and style is inside it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmpi.files import write_whole
from medmpi.train import thresholds
from medmpi.train.assess import Assessment
from medmpi.train.evaluate import ClassOutputs, Outputs
from medmpi.train.explain import Explained
from medmpi.train.log import read_metrics

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1a202c;max-width:1080px;margin:2em auto;padding:0 1em}
h1{font-size:1.6em;margin-bottom:.2em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #e2e8f0}
table{border-collapse:collapse;font-size:.88em}td,th{padding:.25em .8em;text-align:right;border-bottom:1px solid #eee}
td:first-child,th:first-child{text-align:left}svg,img{max-width:100%;height:auto}pre{background:#f7fafc;padding:1em;
font-size:.8em;overflow-x:auto}.row{display:flex;flex-wrap:wrap;gap:1.5em;align-items:flex-start}
.big{font-size:1.7em;font-weight:600}.card{background:#f7fafc;padding:.6em 1.2em;border-radius:6px}.dim{color:#718096}
.scroll{overflow-x:auto}.bad{color:#c53030}
"""


@dataclass
class Content:
    """What a report shows beside the metrics file."""

    title: str
    classes: Sequence[str]
    counts: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    test: Mapping[str, Any] | None = None
    images: NDArray[np.uint8] | None = None
    image_titles: Sequence[str] = ()
    masks: NDArray[np.uint8] | None = None
    facts: Sequence[tuple[str, str]] = ()
    settings: str = ""
    segmentation: bool = False
    assessment: Assessment | None = None
    outputs: Outputs | None = None
    explained: Explained | None = None


def write_report(folder: Path, content: Content) -> Path:
    """Writes report.html from metrics.csv and the content; replaces an older one in one step."""
    from medmpi.train import dashboard, pictures  # matplotlib: 0.4 s, wanted here only

    rows = read_metrics(folder / "metrics.csv")
    parts = [f"<h1>{_e(content.title)}</h1>"]
    parts.append(table([], [[name, value] for name, value in content.facts]))
    if content.test is not None:
        parts.append(_test_section(content.test, content.classes))
        parts.append(pictures.confusion(np.array(content.test["confusion"]), content.classes, "test confusion matrix"))
    if content.assessment is not None:
        parts += _assessment_section(content)
    if rows:
        columns = {name: [float(row[name]) if row[name] else float("nan") for row in rows] for name in rows[0]}
        epochs = [int(row["epoch"]) for row in rows]
        parts.append("<h2>Training</h2>")
        parts.append(pictures.curves(epochs, columns))
        watched = thresholds.watch(epochs, columns, segmentation=content.segmentation)
        parts.append("<h2>Against thresholds</h2>")
        parts.append(dashboard.dashboard(watched))
        parts.append(table(*dashboard.table(watched)))
        names = list(rows[0])
        cells = [[row[name] if name in ("epoch", "step") else _figure(row[name]) for name in names] for row in rows]
        parts.append(f"<details><summary>All figures</summary><div class=scroll>{table(names, cells)}</div></details>")
    if content.counts:
        parts.append("<h2>Data</h2>")
        unit = "pixels" if content.segmentation else "samples"
        parts.append(pictures.distribution(content.counts, content.classes, unit))
    if content.images is not None and len(content.images):
        parts.append(pictures.samples(content.images, content.image_titles, content.masks))
    if content.settings:
        parts.append(f"<h2>Settings</h2><pre>{_e(content.settings)}</pre>")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_e(content.title)}</title>'
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    path = folder / "report.html"
    write_whole(path, page)
    return path


def _test_section(test: Mapping[str, Any], classes: Sequence[str]) -> str:
    cards = "".join(
        f"<div class=card><div class=dim>{_e(name)}</div><div class=big>{_figure(test.get(name))}</div></div>"
        for name in ("accuracy", "precision", "recall", "f1", "auc", "iou")
        if test.get(name) is not None
    )
    per_class = test.get("per_class", {})
    names = [name for name in ("precision", "recall", "f1", "iou", "support") if name in per_class]
    rows = [
        [label, *(f"{per_class[n][i]:,.0f}" if n == "support" else _figure(per_class[n][i]) for n in names)]
        for i, label in enumerate(classes)
    ]
    head = f"<h2>Test split: {test['samples']:,} samples, weights of epoch {test['epoch']}</h2>"
    return f"{head}<div class=row>{cards}</div><p>{table(['class', *names], rows)}</p>"


def _assessment_section(content: Content) -> list[str]:
    """Intervals, curves, operating points, objects, calibration, and what the model sees in a few images."""
    from medmpi.train import assess_pictures
    from medmpi.train.card import objects_table, points_table

    found = content.assessment
    if found is None:
        return []
    parts = ["<h2>How certain, and at which threshold</h2>"]
    rows = [] if found.accuracy is None else [["accuracy", str(found.accuracy), found.accuracy.method]]
    for title, intervals in (
        ("area under the ROC curve", found.auc), ("average precision", found.average_precision),
        ("Dice, mean over images", found.dice), ("Dice, mean over patients or volumes", found.dice_by_group),
        ("IoU, mean over images", found.iou),
    ):  # fmt: skip
        rows += [[f"{title}: {name}", str(interval), interval.method] for name, interval in intervals.items()]
    parts.append(table(["test split", "value (95 % interval)", "method"], rows))
    if isinstance(content.outputs, ClassOutputs) and found.auc:
        parts.append(assess_pictures.curves(content.classes, content.outputs, found))
    for head, cells in (points_table(found), objects_table(found)):
        if cells:
            parts.append(table(head, cells))
    if found.points:
        parts.append("<p class=dim>Thresholds of the second class's probability, chosen on validation.</p>")
    if found.calibration is not None:
        c = found.calibration
        parts.append(
            f"<p>Calibration: divide the logits by {c.temperature:.3f} (fitted on validation); expected calibration "
            f"error {c.ece_before:.4f} becomes {c.ece_after:.4f}, Brier score {c.brier_before:.4f} becomes "
            f"{c.brier_after:.4f}.</p>"
        )
    if content.explained is not None:
        parts.append("<h2>What the model sees</h2>")
        parts.append(
            "<p class=dim>Grad-CAM of the predicted class beside each image; the most certain errors come last.</p>"
            if content.explained.heat is not None
            else "<p class=dim>From the worst to the best image: truth green, prediction red.</p>"
        )
        parts.append(assess_pictures.explained(content.explained))
    return parts


def _figure(value: Any) -> str:
    if value in (None, ""):
        return "–"
    number = float(value)
    return "–" if not np.isfinite(number) else f"{number:.4g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of texts."""
    top = "".join(f"<th>{_e(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{'<tr>' + top + '</tr>' if head else ''}{body}</table>"


def _e(text: object) -> str:
    return html.escape(str(text))
