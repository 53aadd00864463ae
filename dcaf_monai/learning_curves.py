"""What a simulation says: learning curves, area under them, labels needed, and savings against random.

Runs of different seeds are compared in pairs: seed s starts every strategy from the same patients (where
the cold start is random) and the same initial weights. Intervals are bootstraps over seeds and so tell of
draws and starts, not of other patients: the training and judged splits are fixed. A percentile interval of
few seeds covers too seldom (five: the truth in some 83 of 100 cases instead of 95), so its ends are taken
further out, as Student's t and the factor n / (n - 1) of the variance ask for (Hesterberg 2015, expanded
percentiles): 91 of 100 with five seeds, 95 with ten.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm, t
from sklearn.isotonic import IsotonicRegression

from dcaf_monai.image import Notice
from dcaf_monai.simulate import Simulation

RESAMPLES = 2000
SHARES = (0.95, 0.99)
"""Of the AUROC with all labels that a strategy shall reach."""
# Okabe and Ito's colours: told apart by colour-blind readers
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#8C6D00")
_DASHES = ("-", "--", ":")


@dataclass(frozen=True)
class Curve:
    """Learning curve of one strategy and batch size on a common grid of label counts.

    Args:
        labels: ``(points,)`` labelled images, equally spaced.
        patients: ``(points,)`` labelled patients, mean over seeds.
        auroc: ``(seeds, points)``, between the trainings of each run by straight lines.
        accuracy: ``(seeds, points)``.
    """

    labels: np.ndarray
    patients: np.ndarray
    auroc: np.ndarray
    accuracy: np.ndarray


def curves(simulation: Simulation, batch_size: int, *, judge: str = "") -> dict[str, Curve]:
    """The curve of every contender at one batch size on a split, all on one grid that every run covers."""
    plan, judge = simulation.plan, judge or simulation.plan.judge
    runs = {name: simulation.of(name, batch_size) for name in plan.contenders}
    first = max(run.labels[0] for own in runs.values() for run in own)
    last = min(run.labels[-1] for own in runs.values() for run in own)
    grid = np.append(np.arange(first, last, batch_size), last)

    def on_grid(run_labels: Sequence[int], values: Sequence[float]) -> np.ndarray:
        return np.interp(grid, run_labels, values)

    return {name: Curve(grid, np.mean([on_grid(run.labels, run.patients) for run in own], axis=0),
                        np.array([on_grid(run.labels, run.auroc[judge]) for run in own]),
                        np.array([on_grid(run.labels, run.accuracy[judge]) for run in own]))
            for name, own in runs.items()}


def chosen_on_validation(simulation: Simulation, batch_size: int) -> str | None:
    """The strategy with the largest area on validation; None when that is judged itself or is empty.

    The best of many on the judged split is partly luck; the figures of this one are not.
    """
    if simulation.plan.judge == "val" or any("val" not in run.auroc for run in simulation.runs):
        return None
    found = curves(simulation, batch_size, judge="val")
    return max(found, key=lambda name: float(found[name].auroc.mean()))


def labels_to_reach(labels: np.ndarray, values: np.ndarray, level: float) -> float:
    """Labels at which a mean curve reaches a level; ``inf`` when it never does.

    The curve is first made non-decreasing (isotonic regression): a single lucky point does not count, a
    single unlucky one does not undo what was reached.

    Args:
        labels: ``(points,)`` rising.
        values: ``(points,)``.
        level: What shall be reached.
    """
    fitted = IsotonicRegression().fit_transform(labels, values)
    reached = np.flatnonzero(fitted >= level)
    if not len(reached):
        return float("inf")
    place = int(reached[0])
    if place == 0:
        return float(labels[0])
    share = (level - fitted[place - 1]) / (fitted[place] - fitted[place - 1])
    return float(labels[place - 1] + share * (labels[place] - labels[place - 1]))


def summary(simulation: Simulation, *, notices: Sequence[Notice] = (), seed: int = 0) -> dict[str, Any]:
    """Every figure of a simulation as plain JSON values.

    Of each batch size and strategy: the curve (mean and standard deviation over seeds), ``area`` (mean
    AUROC over the grid, so that strategies of one batch size compare) and its difference from random, and
    per share of the full-label AUROC the labels needed, their share of the training images, the ratio to
    random's labels, each with a 95 % interval. Null is what is not reached within the budget. Where
    random does not reach a level, its labels count as all of the budget and ``random_reached`` is false:
    the ratio is then an upper bound. ``chosen_on_validation``: by batch size, see there.
    """
    plan, full = simulation.plan, np.array(simulation.full)
    rng = np.random.default_rng(seed)
    draws = np.concatenate([np.arange(plan.seeds)[None],
                            rng.integers(plan.seeds, size=(RESAMPLES, plan.seeds))])
    sizes = {}
    for size in plan.batch_sizes:
        found = curves(simulation, size)
        rival = found["random"]
        reach = {name: [[labels_to_reach(curve.labels, curve.auroc[draw].mean(0), share * full[draw].mean())
                         for draw in _distinct(draws)] for share in SHARES] for name, curve in found.items()}
        sizes[str(size)] = {name: _told(curve, rival, reach[name], reach["random"], draws, simulation.images)
                            for name, curve in found.items()}
    return {"plan": asdict(plan), "classes": list(simulation.classes), "training_images": simulation.images,
            "training_patients": simulation.patients, "judged_images": simulation.judged,
            "full_auroc": {"mean": float(full.mean()), "sd": float(full.std(ddof=1)),
                           "seeds": full.tolist()},
            "notices": [{"code": notice.code, "message": notice.message} for notice in notices],
            "chosen_on_validation": {str(size): chosen_on_validation(simulation, size)
                                     for size in plan.batch_sizes}, "batch_sizes": sizes}


def write_report(simulation: Simulation, folder: Path, *, notices: Sequence[Notice] = ()) -> dict[str, Any]:
    """``simulation.json``, ``simulation.csv`` and ``simulation.png`` in a folder; gives the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    document = summary(simulation, notices=notices)
    (folder / "simulation.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8")
    with (folder / "simulation.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("batch_size", "strategy", "seed", "images", "patients", "auroc", "accuracy"))
        for run in simulation.runs:
            writer.writerows((run.batch_size, run.strategy, run.seed, *point) for point in zip(
                run.labels, run.patients, run.auroc[simulation.plan.judge],
                run.accuracy[simulation.plan.judge], strict=True))
    draw(simulation, folder / "simulation.png")
    return document


def draw(simulation: Simulation, path: Path) -> None:
    """The learning curves as one picture: a panel per batch size, band of one standard deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plan, full = simulation.plan, float(np.mean(simulation.full))
    figure = Figure(figsize=(1.5 + 6 * len(plan.batch_sizes), 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(plan.batch_sizes), sharey=True, squeeze=False)[0]
    for axis, size in zip(axes, plan.batch_sizes, strict=True):
        for number, (name, curve) in enumerate(curves(simulation, size).items()):
            colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)]
            mean, deviation = curve.auroc.mean(0), curve.auroc.std(0, ddof=1)
            axis.plot(curve.labels, mean, dash, color=colour, label=name,
                      linewidth=2.6 if name == "random" else 1.5, zorder=3 if name == "random" else 2)
            axis.fill_between(curve.labels, mean - deviation, mean + deviation, color=colour, alpha=0.1,
                              linewidth=0)
        axis.axhline(full, color="0.3", linewidth=0.8)
        axis.annotate("all labels", (0.01, full), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
        for share in SHARES:
            axis.axhline(share * full, color="0.6", linewidth=0.8, linestyle=":")
            axis.annotate(f"{share:.0%} of it", (0.01, share * full), xycoords=("axes fraction", "data"),
                          va="bottom", fontsize=8, color="0.35")
        axis.set(xlabel=f"labelled images (of {simulation.images})", title=f"batches of {size} images")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel(f"macro AUROC, {plan.judge} ({simulation.judged} images)")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=130)


def _distinct(draws: np.ndarray) -> list[np.ndarray]:
    """Draws of seeds as sorted rows, each kind once; `_spread` puts the answers back."""
    return list(np.unique(np.sort(draws, axis=1), axis=0))


def _spread(values: Sequence[float], draws: np.ndarray) -> np.ndarray:
    """Answers of `_distinct` for every draw."""
    _, place = np.unique(np.sort(draws, axis=1), axis=0, return_inverse=True)
    return np.asarray(values, np.float64)[place.ravel()]


def _told(curve: Curve, rival: Curve, reach: list[list[float]], rival_reach: list[list[float]],
          draws: np.ndarray, images: int) -> dict[str, Any]:
    area, rival_area = curve.auroc.mean(1), rival.auroc.mean(1)
    levels = {}
    for share, own, other in zip(SHARES, reach, rival_reach, strict=True):
        needed, rivals = _spread(own, draws), _spread(other, draws)
        ratio = needed / np.minimum(rivals, rival.labels[-1])
        levels[f"{share:.2f}"] = {"labels": interval(needed, len(area)),
                                  "share_of_images": interval(needed / images, len(area)),
                                  "ratio_to_random": interval(ratio, len(area)),
                                  "random_reached": bool(np.isfinite(rivals[0]))}
    return {"labels": curve.labels.tolist(), "patients": curve.patients.tolist(),
            "auroc": curve.auroc.mean(0).tolist(), "auroc_sd": curve.auroc.std(0, ddof=1).tolist(),
            "accuracy": curve.accuracy.mean(0).tolist(),
            "area": {"mean": float(area.mean()), "sd": float(area.std(ddof=1))},
            "area_over_random": interval((area - rival_area)[draws].mean(1), len(area)), "reach": levels}


def interval(values: np.ndarray, seeds: int) -> Mapping[str, float | None]:
    """The figure itself (first) and the 95 % interval of its draws; null for what is not reached."""
    tail = float(norm.cdf(np.sqrt(seeds / (seeds - 1)) * t.ppf(0.025, seeds - 1)))
    low, high = np.quantile(values[1:], [tail, 1 - tail], method="inverted_cdf")
    return {name: float(value) if np.isfinite(value) else None
            for name, value in (("value", values[0]), ("low", low), ("high", high))}
