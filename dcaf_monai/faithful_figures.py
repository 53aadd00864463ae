"""The check of explanations as small multiples: one column a kind of map, from its document alone.

Colours are those of Okabe and Ito, which colour-blind readers tell apart; lines also differ in their dashes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib.axes import Axes  # noqa: E402  (the backend must be chosen first)
from matplotlib.figure import Figure  # noqa: E402

OWN, OTHER, CONTROL = "#0072B2", "#D55E00", "#5F5F5F"
STAGE_TITLES = {"head": "head", "level_2": "level 2", "level_1": "level 1", "second": "trunk 2",
                "first": "trunk 1"}


def faithfulness_png(document: Mapping[str, Any], *, dpi: int = 120) -> bytes:
    """Deletion and insertion curves and the randomisation test of every kind, as PNG.

    Bands are 95 % intervals. Grey lines are what ignorance gives: in the curves a random order (dashed) and
    the middle first (dotted), in the randomisation test similarity between different images (dotted).

    Args:
        document: From `faithful.Faithfulness.document`.
        dpi: Pixels an inch; a column is 2.4 inches wide.

    Raises:
        ValueError: When the document has no kind of map.
    """
    kinds = document["kinds"]
    if not kinds:
        raise ValueError("document: need at least one kind of map, got none.")
    figure = Figure(figsize=(1.2 + 2.4 * len(kinds), 6.6), layout="constrained")
    grid = figure.subplots(3, len(kinds), sharey="row", sharex="row", squeeze=False)
    for column, (kind, found) in enumerate(kinds.items()):
        for row, name in enumerate(("deletion", "insertion")):
            _curves(grid[row, column], document, found, name)
        _randomisation(grid[2, column], document, found["randomisation"])
        verdict = "depends on the weights" if found["passes"] else "NOT FAITHFUL"
        grid[0, column].set_title(f"{kind.replace('_', ' ')}\n{verdict}", fontsize=10,
                                  color="black" if found["passes"] else OTHER)
    for row, title in enumerate(("deletion: probability\n(falls early = good)",
                                 "insertion: probability\n(rises early = good)",
                                 "similarity to the map\nof the trained network")):
        grid[row, 0].set_ylabel(title, fontsize=9)
    for row in (0, 2):
        handles, labels = grid[row, 0].get_legend_handles_labels()
        grid[row, -1].legend(handles, labels, fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5),
                             frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()


def _curves(axes: Axes, document: Mapping[str, Any], found: Mapping[str, Any], name: str) -> None:
    fractions = document["fractions"]
    for control, title, dashes in (("random", "random order", "--"), ("centre", "middle first", ":")):
        values, _, _ = _band(document["controls"][control]["curves"][name])
        axes.plot(fractions, values, dashes, color=CONTROL, linewidth=1.2, label=title)
    values, low, high = _band(found["curves"][name])
    axes.fill_between(fractions, low, high, color=OWN, alpha=0.2, linewidth=0)
    axes.plot(fractions, values, color=OWN, linewidth=1.8, label="hottest first")
    axes.set(ylim=(-0.02, 1.02), xlim=(0, 1))
    axes.set_xlabel("share replaced" if name == "deletion" else "share put back", fontsize=8)
    axes.text(0.96, 0.72 if name == "deletion" else 0.3, f"area {found[name]['value']:.2f}", fontsize=8,
              ha="right", va="center", transform=axes.transAxes,
              bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5})
    _plain(axes)


def _randomisation(axes: Axes, document: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
    places = np.arange(len(document["stages"]) + 1)
    for name, title, colour, line in (("rank", "rank correlation, size", OWN, "-o"),
                                      ("ssim", "structural similarity", OTHER, "--s")):
        values, low, high = (np.concatenate([[1.0], each]) for each in _band(shown[name]))
        axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(places, values, line, color=colour, markersize=3.5, linewidth=1.4, label=title)
    apart = shown["between_images"]["ssim"]["value"]
    if apart is not None:
        axes.axhline(apart, color=CONTROL, linestyle=":", linewidth=1.2, label="structural, other image")
    axes.plot(places[-1], document["limits"]["rank"], marker="_", markersize=12, color=OWN, linestyle="none",
              label="limit, rank correlation")
    axes.set_xticks(places, ["trained", *(STAGE_TITLES[stage] for stage in document["stages"])], rotation=60,
                    fontsize=7)
    axes.set(ylim=(-0.3, 1.05))
    _plain(axes)


def _band(figures: Sequence[Mapping[str, float | None]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, low and high of figures in a row; an interval that does not exist is the value."""
    values = np.array([each["value"] for each in figures], float)
    low, high = (np.array([each["value"] if each[end] is None else each[end] for each in figures], float)
                 for end in ("low", "high"))
    return values, low, high


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
