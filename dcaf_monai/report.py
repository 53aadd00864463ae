"""The demo's report: one self-contained HTML page with each film, its overlay and what changed."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib
import numpy as np

from dcaf_monai.dicom import read_image
from dcaf_monai.overlay import grey_png

matplotlib.use("Agg")
from matplotlib.figure import Figure  # noqa: E402  (the backend must be chosen first)

BEFORE, AFTER = "#7a8ca3", "#0b5fa5"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>DCAF demo</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1150px; padding: 0 1rem;
        color: #1b2733; background: #fff; }
 h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2rem }
 .note { color: #56657a; max-width: 80ch } .verdict { border-left: 4px solid #0b5fa5; padding-left: .8rem }
 table { border-collapse: collapse; width: 100% } th { text-align: left; font-weight: 600; color: #56657a }
 td, th { padding: .45rem .6rem; border-bottom: 1px solid #e3e8ee; vertical-align: top }
 td img { height: 190px; display: block; background: #000 } .figure img { max-width: 100% }
 .bar { background: #e9eef3; height: .75rem; width: 130px; display: inline-block; vertical-align: middle }
 .bar span { display: block; height: 100% } .number { font-variant-numeric: tabular-nums }
 .wrong { color: #a33b00 }
 .tag { background: #e7f0f8; border-radius: 3px; padding: 0 .35rem; font-size: .85em }
</style></head><body>
<h1>DCAF demo: one round of active learning on synthetic films</h1>
<p class="note">Every film here is synthetic and every label comes from its recipe. The figures show that the
loop runs; they say nothing about patients. Research software, not a medical device.</p>
<p class="verdict">{{ verdict }}</p>
<p>Right on all {{ rows|length }} films: {{ right_before }} before, {{ right_after }} after.
Right on the {{ unread }} films no reader touched: {{ unread_before }} before, {{ unread_after }} after.
Mean entropy: {{ '%.3f'|format(entropy_before) }} nats before,
{{ '%.3f'|format(entropy_after) }} after (at most {{ '%.3f'|format(ceiling) }}).</p>
<div class="figure"><img alt="Predictive entropy of each film before and after" src="{{ figure }}"></div>
<h2>The films, most uncertain first</h2>
<table><tr><th>Film</th><th>Overlay before</th><th>Overlay after</th><th>Answer</th></tr>
{% for row in rows %}<tr>
<td><img alt="film" src="{{ row.film }}"><div>{{ row.name }} · truth: {{ row.label }}
{% if row.corrected %}<span class="tag">read</span>{% endif %}</div></td>
<td><img alt="overlay before" src="{{ row.overlay_before }}"></td>
<td><img alt="overlay after" src="{{ row.overlay_after }}"></td>
<td>{% for side in row.sides %}<div><b>{{ side.title }}</b>: <span {% if side.label != row.label %}
class="wrong"{% endif %}>{{ side.label }}</span>, entropy
<span class="number">{{ '%.3f'|format(side.entropy) }}</span> nats
({{ '%.0f'|format(side.normalized * 100) }} % of maximum)</div>
{% for name, probability, sd in side.bars %}<div class="number"><span class="bar"><span
style="width:{{ '%.1f'|format(probability * 100) }}%;background:{{ side.colour }}"></span></span>
{{ name }} {{ '%.3f'|format(probability) }} ± {{ '%.3f'|format(sd) }}</div>{% endfor %}
{% for warning in side.warnings %}<div class="note">{{ warning.message }}</div>{% endfor %}{% endfor %}
</td></tr>{% endfor %}</table>
<p class="note">Colour shows where the class-activation map exceeds the threshold, on the model's own fixed
scale. ± is the standard deviation over {{ samples }} dropout masks.</p>
</body></html>
"""


@dataclass(frozen=True)
class FilmRow:
    """One film in the report.

    Args:
        path: The film's file.
        label: Its true class.
        corrected: Whether the reader gave it a label in this round.
        before: The ``/infer`` document of the first model; ``after`` of the one now in place.
        overlay_before: Blended PNG bytes of the first model; ``overlay_after`` likewise.
    """

    path: Path
    label: str
    corrected: bool
    before: dict
    after: dict
    overlay_before: bytes
    overlay_after: bytes


def write_report(path: Path, rows: Sequence[FilmRow], *, verdict: str) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        rows: At least one film.
        verdict: The publication gate's sentence.
    """
    ordered = sorted(rows, key=lambda row: -_entropy(row.before))
    unread = [row for row in rows if not row.corrected]
    page = jinja2.Environment(autoescape=True).from_string(_PAGE).render(
        verdict=verdict, figure=_data_url(_figure(ordered)),
        right_before=sum(_label(row.before) == row.label for row in rows),
        right_after=sum(_label(row.after) == row.label for row in rows),
        unread=len(unread),
        unread_before=sum(_label(row.before) == row.label for row in unread),
        unread_after=sum(_label(row.after) == row.label for row in unread),
        entropy_before=float(np.mean([_entropy(row.before) for row in rows])),
        entropy_after=float(np.mean([_entropy(row.after) for row in rows])),
        ceiling=float(np.log(len(rows[0].before["label_names"]))),
        samples=rows[0].before["uncertainty"]["samples"],
        rows=[{"name": row.path.name, "label": row.label, "corrected": row.corrected,
               "film": _data_url(grey_png(read_image(row.path), max_side=400)),
               "overlay_before": _data_url(row.overlay_before), "overlay_after": _data_url(row.overlay_after),
               "sides": [_side("before", BEFORE, row.before), _side("after", AFTER, row.after)]}
              for row in ordered])
    partial = path.with_suffix(".part")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def _label(document: dict) -> str:
    return document["prediction"][0]["label"]


def _entropy(document: dict) -> float:
    return document["uncertainty"]["predictive_entropy"]


def _side(title: str, colour: str, document: dict) -> dict:
    uncertainty = document["uncertainty"]
    return {"title": title, "colour": colour, "label": _label(document), "entropy": _entropy(document),
            "normalized": uncertainty["normalized_entropy"], "warnings": document["warnings"],
            "bars": [(item["label"], item["score"], uncertainty["std"][item["label"]])
                     for item in document["prediction"]]}


def _figure(rows: Sequence[FilmRow]) -> bytes:
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots()
    x = np.arange(len(rows))
    before, after = ([_entropy(getattr(row, side)) for row in rows] for side in ("before", "after"))
    axes.vlines(x, before, after, color="#c9d2dc", linewidth=2, zorder=1)
    axes.scatter(x, before, color=BEFORE, label="before", zorder=2, s=26)
    axes.scatter(x, after, color=AFTER, label="after", zorder=3, s=26)
    for index, row in enumerate(rows):
        if row.corrected:
            axes.axvspan(index - 0.5, index + 0.5, color="#e7f0f8", zorder=0, linewidth=0)
    ceiling = np.log(len(rows[0].before["label_names"]))
    axes.axhline(ceiling, color="#a33b00", linewidth=0.8, linestyle="--")
    axes.set(ylabel="predictive entropy (nats)", xticks=[],
             xlabel="film, most uncertain first; shaded: read by the reader")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
