"""Whether more labels are worth their trouble: the learning curve of a running project, and honest advice.

Points are rounds judged on one frozen validation split (see `rounds`). Through four or more of them runs
an inverse power law, loss = floor + scale / labels^exponent (Cortes et al., NIPS 1993), which says what
twice as many labels may bring. The advice to stop needs both: no gain seen over the last rounds, image by
image on the same patients, and none promised by the curve. Missing evidence is never taken for evidence
that nothing is missing.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize_scalar, nnls

from dcaf_monai import metrics
from dcaf_monai.image import Notice
from dcaf_monai.rounds import Round

STEPS = 3
"""So many rounds without a gain before stopping is thought of."""
MARGIN = 0.02
"""A gain in negative log-likelihood, nats, that is worth labelling for."""
FEWEST = 4
"""A curve of three unknowns needs at least so many points."""
FEWEST_PATIENTS = 30
"""A bootstrap over fewer patients tells narrower intervals than are true."""
RESAMPLES = 200
_EXPONENTS = (0.05, 3.0)
_TOLD = {"version", "labels", "published", "mode", "nll", "auroc"}

BASIS = ("All figures are on the frozen validation split, never on the training labels: those are the "
         "queue's choice and no fair sample, so nothing is read from them but their number. The validation "
         "split also chose epoch and temperature of every round: each loss is a little too good, the "
         "differences less so.")

Answer = Literal["too early to say", "go on", "more labels are unlikely to help"]


@dataclass(frozen=True)
class Law:
    """loss = floor + scale / labels^exponent; ``floor`` and ``scale`` are not negative."""

    floor: float
    scale: float
    exponent: float

    def loss(self, labels: float) -> float:
        """Negative log-likelihood at a number of training labels, nats."""
        return self.floor + self.scale * float(labels) ** -self.exponent


@dataclass(frozen=True)
class Gain:
    """A fall of the loss, nats; positive is better. ``low`` and ``high`` bound it to 95 %, or are None."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" (95 % interval {self.low:.4f} to {self.high:.4f})"
        return f"{self.value:.4f}{interval}"


@dataclass(frozen=True)
class Progress:
    """How a project stands.

    Args:
        points: One round for each number of training labels, fewest first, all on one validation split.
        law: Through the points; None when there are too few.
        recent: Gain of the last `STEPS` steps together; an interval only when both ends keep the losses
            of the same images.
        doubling: What the law promises from twice as many labels; an interval when all points do.
        answer: In words.
        why: The sentences behind it.
        margin: The gain that counts as worth labelling for, nats.
        notices: What speaks against the curve.
    """

    points: tuple[Round, ...]
    law: Law | None
    recent: Gain | None
    doubling: Gain | None
    answer: Answer
    why: str
    margin: float
    notices: tuple[Notice, ...] = ()

    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
        def told(value: Law | Gain | None) -> dict[str, Any] | None:
            return None if value is None else dict(vars(value))

        return {"answer": self.answer, "why": self.why, "basis": BASIS, "margin": self.margin,
                "points": [point.model_dump(include=_TOLD) for point in self.points],
                "law": told(self.law), "recent_gain": told(self.recent),
                "gain_of_doubling": told(self.doubling),
                "notices": [{"code": notice.code, "message": notice.message} for notice in self.notices]}


def judge_progress(rounds: Sequence[Round], *, steps: int = STEPS, margin: float = MARGIN,
                   seed: int = 0) -> Progress:
    """Curve and advice from the rounds of a project.

    Args:
        rounds: Oldest first; those on another validation split than the newest are left out.
        steps: How many steps must have brought nothing; at least 3.
        margin: A gain in nats that is worth labelling for; positive.
        seed: Of the bootstrap over patients.

    Raises:
        ValueError: For fewer than 3 steps or a margin that is not positive.
    """
    if steps < 3:
        raise ValueError(f"steps: need at least 3, got {steps}. Fewer rounds are no evidence.")
    if not margin > 0:
        raise ValueError(f"margin: need a gain above 0 nats, got {margin}.")
    points, notices = _points(rounds)
    law = fit_law([point.labels for point in points], [_loss(point) for point in points])
    recent = _recent(points[-1 - steps], points[-1], seed) if len(points) > steps else None
    doubling = _doubling(points, law, seed) if law else None
    answer, why = _advice(points, recent, doubling, steps, margin)
    return Progress(points, law, recent, doubling, answer, why, margin, notices)


def fit_law(labels: Sequence[float], losses: Sequence[float]) -> Law | None:
    """The inverse power law nearest to the points; None with fewer than four numbers of labels.

    For one exponent floor and scale are a least-squares problem without negative answers; the exponent
    is searched between 0.05 and 3.
    """
    if len(set(labels)) < FEWEST:
        return None
    counts, target = np.asarray(labels, np.float64), np.asarray(losses, np.float64)

    def solved(exponent: float) -> tuple[np.ndarray, float]:
        # counts relative to the first keep both columns of one size
        return nnls(np.stack([np.ones_like(counts), (counts / counts[0]) ** -exponent], 1), target)

    best = minimize_scalar(lambda exponent: solved(exponent)[1], bounds=_EXPONENTS, method="bounded",
                           options={"xatol": 1e-6})
    (floor, scale), _ = solved(best.x)
    return Law(float(floor), float(scale * counts[0] ** best.x), float(best.x))


def draw_progress(progress: Progress) -> bytes:
    """The curve as PNG: loss with its law up to twice the labels, AUROC beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("nll", "auroc"), strict=True):
        known = [(point, getattr(point, name)) for point in progress.points
                 if getattr(point, name).value is not None]
        for point, found in known:
            if found.low is not None:
                axes.vlines(point.labels, found.low, found.high, color="#9fb4c8", linewidth=2, zorder=1)
            axes.scatter(point.labels, found.value, s=30, zorder=2, edgecolors="#1f4e79",
                         facecolors="white" if point.published is False else "#1f4e79")
        axes.set(xlabel="training labels", ylabel="validation NLL (nats)" if name == "nll" else
                 "validation AUROC (macro)")
        axes.spines[["top", "right"]].set_visible(False)
        if name == "nll" and progress.law and known:
            grid = np.geomspace(progress.points[0].labels, 2 * progress.points[-1].labels, 100)
            axes.plot(grid, [progress.law.loss(labels) for labels in grid], color="#a33b00", linewidth=1,
                      linestyle="--", zorder=0)
    figure.suptitle(f"{progress.answer} (bars: 95 % over patients; hollow: refused; dashed: fitted law)",
                    fontsize=9)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a layout without a point
        figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _points(rounds: Sequence[Round]) -> tuple[tuple[Round, ...], tuple[Notice, ...]]:
    """The newest round of each number of labels, and what a person should know of them."""
    known = [entry for entry in rounds if entry.nll.value is not None and entry.labels > 0]
    same = [entry for entry in known if entry.validation_sha256 == known[-1].validation_sha256]
    newest = {entry.labels: entry for entry in same}
    points = tuple(newest[labels] for labels in sorted(newest))
    notices = []
    if len(same) < len(known):
        notices.append(Notice("other_validation", f"{len(known) - len(same)} rounds were judged on another "
                              "validation split and are left out."))
    if points and all(entry.published and not entry.losses for entry in same):
        notices.append(Notice("refused_unknown", "Only published rounds are known here, and only better ones "
                              "are published: the curve looks steeper than it is."))
    if len({entry.mode for entry in points}) > 1:
        notices.append(Notice("mixed_modes", "Some rounds trained the whole network and some only its "
                              "fusion: the curve mixes two learners."))
    return points, tuple(notices)


def _loss(point: Round) -> float:
    return float(np.mean(point.losses)) if point.losses else float(point.nll.value or 0.0)


def _recent(before: Round, after: Round, seed: int) -> Gain:
    if not before.pairs_with(after):
        return Gain(_loss(before) - _loss(after))
    fall = np.array(before.losses) - np.array(after.losses)
    found = metrics.interval(_weights(before, seed, 1000) @ fall, len(set(before.patients)))
    return Gain(float(found["value"] or 0.0), found["low"], found["high"])


def _doubling(points: Sequence[Round], law: Law, seed: int) -> Gain:
    """The law's promise; its interval refits the law to every draw of patients."""
    labels = [point.labels for point in points]

    def promise(fitted: Law) -> float:
        return fitted.loss(labels[-1]) - fitted.loss(2 * labels[-1])

    if not all(point.pairs_with(points[-1]) for point in points):
        return Gain(promise(law))
    drawn = np.stack([point.losses for point in points]) @ _weights(points[-1], seed, RESAMPLES).T
    promises = [promise(fitted) for losses in drawn.T if (fitted := fit_law(labels, losses))]
    found = metrics.interval(np.array(promises), len(set(points[-1].patients)))
    return Gain(promise(law), found["low"], found["high"])


def _weights(point: Round, seed: int, resamples: int) -> np.ndarray:
    """Share of each image in each draw of patients, the first draw being all of them."""
    patients = [str(patient) for patient in point.patients]
    weights = metrics.group_weights(patients, resamples=resamples, seed=seed)
    return weights / weights.sum(1, keepdims=True)


def _advice(points: Sequence[Round], recent: Gain | None, doubling: Gain | None, steps: int,
            margin: float) -> tuple[Answer, str]:
    needed = max(FEWEST, steps + 1)
    if recent is None or doubling is None:
        return "too early to say", (
            f"Rounds with different numbers of labels on this validation split: {len(points)}. It takes "
            f"{needed} to see where the curve goes.")
    span = (f"Over the last {steps} steps, from {points[-1 - steps].labels} to {points[-1].labels} training "
            f"labels, the gain in validation loss was {recent}; the fitted curve promises {doubling} from "
            f"twice as many. Worth labelling for is {margin:g}. ")
    if recent.low is not None and recent.low > 0:
        return "go on", span + "The labels are still paying."
    if doubling.value >= margin:
        return "go on", span + "The curve is not flat yet."
    if recent.low is None or recent.high is None:
        return "too early to say", span + (
            "Whether the last labels brought something cannot be told without the losses of the single "
            "images: run dcaf progress with --data.")
    if recent.high < 0:
        return "too early to say", span + (
            "The last rounds made it worse, which more labels do not explain: look at the labels and the "
            "settings first.")
    patients = len(set(points[-1].patients))
    if max(recent.high, doubling.high or 0.0) >= margin or patients < FEWEST_PATIENTS:
        return "too early to say", span + (
            f"The validation split, {patients} patients, is too small to rule out a gain worth labelling "
            "for.")
    return "more labels are unlikely to help", span + (
        "More labels of the same kind are unlikely to help this network. Rare findings, other sites and "
        "other devices that the validation split does not hold are not judged by this.")
