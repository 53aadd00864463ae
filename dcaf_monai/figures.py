"""The pictures of an evaluation, each as the bytes of a PNG.

Colours are those of Okabe and Ito (2008), told apart by every common kind of colour blindness; lines and
marks differ in more than colour, so that a grey print can be read. Ordered values get one hue from light
to dark, never a rainbow. Numbers with intervals are given, not computed here.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np

from dcaf_monai.metrics import Reliability
from dcaf_monai.selective import RiskCoverage

matplotlib.use("Agg")
from matplotlib.axes import Axes  # noqa: E402  (the backend must be chosen first)
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, YELLOW, BLACK = COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#F0E442", "#000000")
"""Okabe and Ito's eight, the strongest first."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 2)), (0, (3, 3)))
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_INK, _FAINT = "#1b2733", "#8a97a6"
_STYLE: Any = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _FAINT, "axes.labelcolor": _INK,
    "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK, "legend.frameon": False,
    "legend.fontsize": 8, "lines.linewidth": 1.8, "figure.facecolor": "white"}
_styled = matplotlib.rc_context(_STYLE)


@dataclass(frozen=True)
class Tile:
    """One case of the gallery.

    Args:
        picture: uint8 ``(rows, columns)``, grey.
        overlay: uint8 ``(rows, columns, 3)``, the same with its heat.
        lines: What stands below; the first line is bold.
        right: Whether the answer is the label.
    """

    picture: np.ndarray
    overlay: np.ndarray
    lines: tuple[str, ...]
    right: bool


@_styled
def reliability_diagram(before: Reliability, after: Reliability, *, ece: tuple[float, float]) -> bytes:
    """Share of right answers by stated probability, before and after temperature scaling.

    Args:
        before: At temperature 1.
        after: At the model's temperature; the same bins.
        ece: Expected calibration error of both.
    """
    figure, panels = _panels(1, 2, (9, 3.7), sharey=True)
    halves = (("before temperature", before, ORANGE), ("after temperature", after, BLUE))
    for axes, (title, found, colour), error in zip(panels, halves, ece, strict=True):
        width = np.diff(found.edges)
        share = found.count / max(found.count.sum(), 1)
        axes.bar(found.edges[:-1], np.nan_to_num(found.accuracy), width, align="edge", color=colour,
                 alpha=.55, edgecolor="white", linewidth=.6, label="share right")
        axes.bar(found.edges[:-1], share, width, align="edge", color="none", edgecolor=_INK, linewidth=.8,
                 hatch="////", label="share of cases")
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, linestyle="--", label="perfect calibration")
        axes.plot(found.confidence, found.accuracy, "o", color=colour, markersize=4.5, markeredgecolor=_INK,
                  markeredgewidth=.6)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="probability of the answer",
                 title=f"{title}: ECE {error:.3f}")
    panels[0].set_ylabel("share")
    panels[0].legend(loc="upper left")
    return _png(figure)


@_styled
def risk_coverage_curves(curves: Mapping[str, RiskCoverage], *, risk: float | None = None) -> bytes:
    """Share of wrong answers among those accepted, by share accepted, one line a score.

    Args:
        curves: By name of the score; the first one's 95 % band is shaded.
        risk: A risk to draw a line at.
    """
    figure, (axes,) = _panels(1, 1, (6.2, 3.9))
    for number, (name, curve) in enumerate(curves.items()):
        axes.plot(curve.coverage, curve.risk, color=COLOURS[number % 8], linestyle=DASHES[number % 8],
                  label=name.replace("_", " "))
        if not number:
            axes.fill_between(curve.coverage, curve.low, curve.high, color=COLOURS[0], alpha=.15, linewidth=0,
                              label=f"95 % of {name.replace('_', ' ')}")
    if risk is not None:
        axes.axhline(risk, color=_FAINT, linewidth=.8, linestyle=":")
        axes.text(.01, risk, f" {risk:.0%} wrong", color=_FAINT, va="bottom", fontsize=8)
    axes.set(xlim=(0, 1), xlabel="share of cases the model answers, surest first",
             ylabel="share of wrong answers among them")
    axes.set_ylim(bottom=0, top=max(.02, axes.get_ylim()[1]))
    axes.legend(loc="upper left")
    return _png(figure)


@_styled
def entropy_histogram(entropy: np.ndarray, correct: np.ndarray, *, classes: int) -> bytes:
    """How uncertain right and wrong answers are.

    Args:
        entropy: ``(cases,)`` predictive entropy, nats.
        correct: ``(cases,)`` whether the answer was right.
        classes: Number of classes; ln of it is the largest entropy.
    """
    entropy, correct = np.asarray(entropy), np.asarray(correct, bool)
    figure, panels = _panels(2, 1, (6.2, 4.2), sharex=True)
    ceiling = float(np.log(classes))
    edges = np.linspace(0, ceiling, 31).tolist()
    halves = ((correct, "right", BLUE), (~correct, "wrong", VERMILION))
    for axes, (chosen, name, colour) in zip(panels, halves, strict=True):
        axes.hist(np.clip(entropy[chosen], 0, ceiling), edges, color=colour, edgecolor="white", linewidth=.5)
        axes.set(ylabel="cases", title=f"{name} answers ({int(chosen.sum())})", xlim=(0, ceiling * 1.01))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        if chosen.any():
            median = float(np.median(entropy[chosen]))
            axes.axvline(median, color=_INK, linewidth=1, linestyle="--")
            axes.annotate(f"median {median:.3f}", (median, 1), (4, -2), xycoords=("data", "axes fraction"),
                          textcoords="offset points", va="top", fontsize=8)
    panels[1].set_xlabel(f"predictive entropy (nats; at most ln {classes} = {ceiling:.2f})")
    return _png(figure)


@_styled
def roc_and_precision_recall(probs: np.ndarray, labels: np.ndarray, classes: Sequence[str], *,
                             told: Mapping[str, tuple[str, str]]) -> bytes:
    """ROC and precision-recall curve of each class against the rest.

    Args:
        probs: ``(cases, classes)``.
        labels: ``(cases,)`` class indices.
        classes: Class names.
        told: By class what the legend says of the area under the first and under the second curve.
    """
    figure, (roc, recall) = _panels(1, 2, (9.4, 4.2))
    for column, name in enumerate(classes):
        positive = labels == column
        if not 0 < positive.sum() < len(labels):
            continue
        order = np.argsort(-probs[:, column], kind="stable")
        last = np.append(np.flatnonzero(np.diff(probs[order, column])), len(order) - 1)
        hits, alarms = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
        look: dict[str, Any] = {"color": COLOURS[column % 8], "linestyle": DASHES[column % 8]}
        roc.plot([0, *alarms / alarms[-1]], [0, *hits / hits[-1]], label=f"{name}  {told[name][0]}", **look)
        recall.step([0, *hits / hits[-1]], [1, *hits / (hits + alarms)], where="pre",
                    label=f"{name}  {told[name][1]}", **look)
        recall.axhline(positive.mean(), color=COLOURS[column % 8], linewidth=.7, linestyle=":", alpha=.8)
    roc.plot([0, 1], [0, 1], color=_FAINT, linewidth=.8, linestyle=":")
    roc.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(-.01, 1), ylim=(0, 1.01),
            title="ROC; AUROC")
    recall.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", xlim=(0, 1.01), ylim=(0, 1.01),
               title="precision–recall; AUPR; dotted: chance")
    if len(roc.lines) > 1:  # some class has cases and others
        roc.legend(loc="lower right")
        recall.legend(loc="lower left")
    return _png(figure)


@_styled
def confusion(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> bytes:
    """Cases by class and answer; colour is the share of the class."""
    table = np.zeros((len(classes), len(classes)), int)
    np.add.at(table, (labels, predicted), 1)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = 2.1 + .75 * len(classes)
    figure, (axes,) = _panels(1, 1, (side + .6, side))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(table):
        axes.text(column, row, f"{count}\n{share[row, column]:.0%}", ha="center", va="center", fontsize=8.5,
                  color="white" if share[row, column] > .55 else _INK)
    names = [name.replace("_", "\n") for name in classes]
    axes.set(xticks=range(len(classes)), yticks=range(len(classes)), xticklabels=names, yticklabels=names,
             xlabel="answer", ylabel="label")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _png(figure)


@_styled
def coverage_of_sets(found: Mapping[str, Mapping[str, Any]], *, alpha: float) -> bytes:
    """How often conformal sets hold the right class: over all, by class, and by size of the set.

    Args:
        found: By name of the method, what `conformal.coverage` says.
        alpha: Share of misses that was allowed.
    """
    first = next(iter(found.values()))
    sizes = [size for size in first["per_size"]
             if any(one["per_size"][size]["cases"] for one in found.values())]
    names = ["all", *first["per_class"], *(f"size {size}" for size in sizes)]
    figure, (axes,) = _panels(1, 1, (max(6.4, 1.25 * len(names) + 2.2), 3.9))
    step = .8 / max(len(found), 1)
    for number, (method, one) in enumerate(found.items()):
        places = np.arange(len(names)) - .4 + step * (number + .5)
        shown = [one["coverage"], *(part["coverage"] for part in one["per_class"].values()),
                 *(one["per_size"][size]["coverage"] for size in sizes)]
        colour = COLOURS[number // 2 % 8]
        _dots(axes, places, shown, colour=colour, mark=MARKS[number // 2 % 8],
              filled=number % 2 == 1, label=method)
    axes.axhline(1 - alpha, color=_INK, linewidth=1, linestyle="--")
    axes.text(len(names) - .5, 1 - alpha, f" {1 - alpha:.0%}", va="center", fontsize=8)
    axes.axvline(len(first["per_class"]) + .5, color=_FAINT, linewidth=.8)
    axes.set(xticks=range(len(names)), xticklabels=names, ylabel="coverage", xlim=(-.5, len(names) - .5),
             ylim=(max(0, min(.9 - alpha, axes.get_ylim()[0])), 1.02))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    return _png(figure)


@_styled
def outside_plot(rows: Sequence[Mapping[str, Any]], *, scores: Sequence[str]) -> bytes:
    """How well each score tells pictures that do not belong from those of the test split.

    Args:
        rows: Each with ``title``, ``severity`` and ``scores``: name to ``auroc`` as value, low, high.
        scores: Those to draw, in this order.
    """
    figure, (axes,) = _panels(1, 1, (7.2, 1.4 + .24 * len(rows)))
    names = [row["title"] + (f", severity {row['severity']}" if row["severity"] else "") for row in rows]
    for number, score in enumerate(scores):
        kept = [(place, row["scores"][score]["auroc"]["value"]) for place, row in enumerate(rows)
                if score in row["scores"]]
        axes.plot([value for _, value in kept], [place for place, _ in kept], MARKS[number % 8],
                  color=COLOURS[number % 8], markersize=5, alpha=.85, label=score.replace("_", " "))
    axes.axvline(.5, color=_FAINT, linewidth=.8, linestyle="--")
    axes.set(yticks=range(len(rows)), yticklabels=names, xlim=(-.02, 1.02), ylim=(len(rows) - .5, -.5),
             xlabel="AUROC, test images against these (0.5 is chance)")
    axes.grid(axis="y", color="#e3e8ee", linewidth=.6)
    axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=min(len(scores), 5))
    return _png(figure)


@_styled
def forest(rows: Sequence[tuple[str, Mapping[str, float | None]]], *, label: str) -> bytes:
    """Differences with their intervals, one a line, against zero.

    Args:
        rows: Name, and ``difference`` (or ``value``), ``low`` and ``high``.
        label: Of the axis.
    """
    figure, (axes,) = _panels(1, 1, (7.2, 1.1 + .32 * len(rows)))
    for place, (_, found) in enumerate(rows):
        value = found.get("difference", found.get("value"))
        if value is None:
            continue
        low, high = found["low"], found["high"]
        clear = low is not None and high is not None and (low > 0 or high < 0)
        colour = (BLUE if value > 0 else VERMILION) if clear else _FAINT
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(value, place, MARKS[0] if clear else MARKS[1], color=colour, markersize=5.5)
    axes.axvline(0, color=_INK, linewidth=.8, linestyle="--")
    axes.set(yticks=range(len(rows)), yticklabels=[name for name, _ in rows], ylim=(len(rows) - .5, -.5),
             xlabel=label)
    return _png(figure)


@_styled
def gallery(tiles: Sequence[Tile], *, columns: int = 4) -> bytes:
    """Pictures beside their overlays with what the model said of them, in the order given.

    Args:
        tiles: At least one.
        columns: Cases in a row.
    """
    columns = min(columns, len(tiles))
    lines = -(-len(tiles) // columns)
    depth = max(len(tile.lines) for tile in tiles)
    figure = Figure(figsize=(2.9 * columns, lines * (1.55 + .17 * depth)))
    grid = figure.subplots(lines, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        axes.axis("off")
        if place >= len(tiles):
            continue
        tile = tiles[place]
        pair = np.concatenate([_on_square(np.repeat(tile.picture[..., None], 3, axis=2)),
                               _on_square(tile.overlay)], axis=1)
        axes.imshow(pair, interpolation="antialiased")
        axes.set_anchor("N")
        for number, line in enumerate(tile.lines):
            axes.annotate(line, (0, 0), (0, -3 - 11.5 * number), xycoords="axes fraction",
                          textcoords="offset points", va="top", fontsize=8,
                          weight="bold" if not number else "normal",
                          color=VERMILION if not number and not tile.right else _INK)
    below = .17 * depth  # inches of text under each row of pictures
    figure.subplots_adjust(.01, below / lines / (1.55 + below), .99, .995, wspace=.06,
                           hspace=below / 1.5 + .02)
    return _png(figure)


def _on_square(picture: np.ndarray, side: int = 256) -> np.ndarray:
    """The picture, shrunk or enlarged by nearest pixels, in the middle of a black square."""
    scale = side / max(picture.shape[:2])
    rows, columns = (max(1, round(length * scale)) for length in picture.shape[:2])
    taken = picture[np.ix_((np.arange(rows) / scale).astype(int).clip(0, picture.shape[0] - 1),
                           (np.arange(columns) / scale).astype(int).clip(0, picture.shape[1] - 1))]
    square = np.zeros((side, side, 3), np.uint8)
    top, left = (side - rows) // 2, (side - columns) // 2
    square[top:top + rows, left:left + columns] = taken
    return square


def _dots(axes: Axes, places: np.ndarray, found: Sequence[Mapping[str, float | None]], *, colour: str,
          mark: str, filled: bool, label: str) -> None:
    """Values with their intervals; a value that does not exist is left out."""
    kept = [(place, one) for place, one in zip(places, found, strict=True) if one["value"] is not None]
    for place, one in kept:
        if one["low"] is not None and one["high"] is not None:
            axes.plot([place, place], [one["low"], one["high"]], color=colour, linewidth=1.3)
    axes.plot([place for place, _ in kept], [one["value"] or 0.0 for _, one in kept], mark, color=colour,
              markersize=5.5, markerfacecolor=colour if filled else "white", markeredgewidth=1.3, label=label)


def _panels(rows: int, columns: int, size: tuple[float, float], **shared: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **shared).flat)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})  # no version, no date
    return stream.getvalue()
