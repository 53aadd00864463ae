"""How strongly something beside the disease goes with the label, and how sure that is.

Three measures. `Design.table`: Cramér's V of a category and the label, corrected for bias (Bergsma 2013),
with their mutual information. `Design.alone`: how well one number tells the label. `Design.probe`: how well
many do. The last two are areas under the ROC curve of the class told best against the rest, for patients not
learned from. Intervals come from a bootstrap over patients. Chance comes from permutation: label sequences
change places between patients with the same number of images, and within a patient; that stays exact when
images of one patient are alike. `holm` makes up for asking many questions.

The probe is kernel ridge regression (a linear and a Gaussian kernel added) rather than logistic regression:
its answer is linear in the labels, so that thousands of permuted label sets are refitted, through the same
folds, by one solution of a linear system. `held_out` is the plain thing beside it: scikit-learn's logistic
regression, fitted to the training split and judged on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dcaf_monai.metrics import auroc, group_weights

DRAWS = 3999
"""Permutations: the smallest p is 1/4000, so that 40 checks can all be significant at 0.01."""
RESAMPLES = 1000
FOLDS = 5
RIDGE = 0.1
"""Penalty, relative to a kernel whose diagonal is about 2; areas under the curve hardly depend on it."""
MOST_CASES = 1000
"""A probe learns from at most so many cases, whole patients: intervals are then about 0.03 wide."""
BINS = 10
"""One property alone is cut at its tenths; how often each tenth has the label is all that is learned."""
FEWEST = 10
"""Fewest cases and patients of a class for a probe."""


@dataclass(frozen=True)
class Association:
    """Strength of an association with the label.

    Args:
        measure: ``auroc`` (0.5 is chance) or ``cramers_v`` (0 is chance).
        effect, low, high: The figure and its 95 % interval over patients.
        p: Probability of so strong an effect by chance.
        best: The label told best; empty for Cramér's V.
        scores: Of a probe, ``(cases probed,)``: the score of that label for cases not learned from.
        rows: Which cases were probed, ``(cases probed,)``.
        information: Of a table, the mutual information of category and label in nats.
    """

    measure: str
    effect: float
    low: float
    high: float
    p: float
    best: str = ""
    scores: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, int), repr=False)
    information: float | None = None

    @property
    def figures(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {"measure": self.measure, "effect": round(self.effect, 4), "low": round(self.low, 4),
                "high": round(self.high, 4), "p": self.p, **({"label": self.best} if self.best else {}),
                **({"mutual_information_nats": round(self.information, 4)} if self.information is not None
                   else {})}


class Design:
    """Labels, patients, permutations and folds: drawn once, shared by all checks of a data set.

    Args:
        labels: Label of each case.
        groups: Patient of each case.
        seed: Of everything drawn.
        draws: Number of permutations.

    Raises:
        ValueError: For lists of different lengths, fewer than two labels, or a label with fewer than
            `FEWEST` cases or two patients.
    """

    def __init__(self, labels: Sequence[str], groups: Sequence[str], *, seed: int = 0,
                 draws: int = DRAWS) -> None:
        if len(labels) != len(groups):
            raise ValueError(f"labels, groups: need one each a case, got {len(labels)} and {len(groups)}.")
        names, codes = np.unique(np.asarray(labels, str), return_inverse=True)
        patients = [len({group for group, code in zip(groups, codes, strict=True) if code == own})
                    for own in range(len(names))]
        if len(names) < 2 or min(np.bincount(codes)) < FEWEST or min(patients) < 2:
            raise ValueError(f"labels: need at least two, each with {FEWEST} cases of two patients, got "
                             "fewer. Add images.")
        rng = np.random.default_rng(seed)
        self.classes, self.codes = tuple(str(name) for name in names), codes
        self.permuted = permuted(codes, groups, draws=draws, rng=rng)
        self.weights = group_weights(groups, resamples=RESAMPLES, seed=seed)
        _, member = np.unique(np.asarray(groups), return_inverse=True)
        order = rng.permutation(member.max() + 1)
        cases_before = np.cumsum(np.bincount(member)[order])
        chosen = order[:max(1, int(np.searchsorted(cases_before, MOST_CASES, side="right")))]
        self.rows = np.flatnonzero(np.isin(member, chosen))
        # folds do not look at labels: only then are permuted labels as good as the true ones
        fold_of = np.empty(len(order), int)
        fold_of[order] = np.arange(len(order)) % FOLDS
        self._folds = fold_of[member]

    def table(self, values: Sequence[str]) -> Association | None:
        """Association of a category with the label; None when the category has one value."""
        names, codes = np.unique(np.asarray(values, str), return_inverse=True)
        if len(names) < 2:
            return None
        classes = len(self.classes)
        own = np.eye(len(names))[codes]
        pairs = (np.eye(classes)[self.codes][:, :, None] * own[:, None, :]).reshape(len(codes), -1)
        drawn = cramers_v((self.weights @ pairs).reshape(-1, classes, len(names)))
        chance = np.stack([(self.permuted == label).astype(np.float32) @ own for label in range(classes)], 1)
        by_chance = cramers_v(chance)
        low, high = np.percentile(drawn[1:], (2.5, 97.5))
        return Association("cramers_v", float(drawn[0]), float(low), float(high), _p(drawn[0], by_chance),
                           information=mutual_information(self.codes, codes))

    def alone(self, values: np.ndarray) -> Association | None:
        """Association of one number a case ``(cases,)`` with the label; None when it never varies.

        A case's score is how often cases of other patients in the same tenth of the values have the label.
        """
        edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
        bins = np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)[1]
        if values.min() == values.max() or bins.max() == 0:
            return None
        labels = range(1, 2) if len(self.classes) == 2 else range(len(self.classes))
        count = int(bins.max()) + 1
        cells = self._folds * count + bins  # a cell is a tenth within a fold
        member = np.eye(FOLDS * count, dtype=np.float32)[cells]
        inside = member.sum(0)
        best: tuple[float, int, np.ndarray] | None = None
        highest = np.zeros(len(self.permuted))
        for label in labels:
            truth = self.codes == label
            hits = np.concatenate([truth[None], self.permuted == label]).astype(np.float32) @ member
            scores = _elsewhere(hits, inside, count)
            areas = cells_auroc(scores, hits, inside)
            highest = np.maximum(highest, areas[1:])
            if best is None or areas[0] > best[0]:
                best = float(areas[0]), label, scores[0][cells]
        assert best is not None
        area, label, own = best
        drawn = auroc(own, self.codes == label, self.weights)
        low, high = np.nanpercentile(drawn[1:], (2.5, 97.5))
        return Association("auroc", area, float(low), float(high), _p(area, highest), self.classes[label],
                           own, np.arange(len(self.codes)))

    def probe(self, numbers: np.ndarray) -> Association:
        """Association of numbers ``(cases, features)`` with the label."""
        rows = self.rows
        scores = self._out_of_fold(numbers[rows].astype(np.float64))
        truth, chance = self.codes[rows], self.permuted[:, rows]
        ones = range(1, 2) if len(self.classes) == 2 else range(len(self.classes))
        areas = {label: scores_auroc(scores[:, :1, index], (truth == label)[:, None])[0]
                 for index, label in enumerate(ones)}
        highest = np.max([scores_auroc(scores[:, 1:, index], (chance == label).T)
                          for index, label in enumerate(ones)], axis=0)
        best = max(areas, key=lambda label: areas[label])
        own = scores[:, 0, list(ones).index(best)]
        drawn = auroc(own, truth == best, self.weights[:, rows])
        low, high = np.nanpercentile(drawn[1:], (2.5, 97.5))
        return Association("auroc", float(areas[best]), float(low), float(high), _p(areas[best], highest),
                           self.classes[best], own, rows)

    def _out_of_fold(self, numbers: np.ndarray) -> np.ndarray:
        """Scores ``(cases, 1 + draws, labels)`` of cases by regressions that did not see their patients."""
        ones = [1] if len(self.classes) == 2 else list(range(len(self.classes)))
        sets = np.concatenate([self.codes[None, self.rows], self.permuted[:, self.rows]])
        targets = np.stack([sets.T == label for label in ones], 2).astype(np.float64)
        flat = targets.reshape(len(numbers), -1)
        scores = np.empty_like(flat)
        kernel = _kernel(numbers)
        for fold in range(FOLDS):
            own = self._folds[self.rows]
            seen, held = np.flatnonzero(own != fold), np.flatnonzero(own == fold)
            if not len(held) or not len(seen):
                continue
            mean = flat[seen].mean(0)
            factor = cho_factor(kernel[np.ix_(seen, seen)] + RIDGE * np.eye(len(seen)), check_finite=False)
            scores[held] = mean + kernel[np.ix_(held, seen)] @ cho_solve(factor, flat[seen] - mean,
                                                                         check_finite=False)
        return scores.reshape(targets.shape)


def held_out(numbers: np.ndarray, positive: np.ndarray, learned: np.ndarray, groups: Sequence[str], *,
             seed: int = 0) -> dict[str, float | int] | None:
    """Area under the ROC curve, with its interval over patients, on cases the regression has not seen.

    Args:
        numbers: ``(cases, features)``.
        positive: ``(cases,)``, True for the class.
        learned: ``(cases,)``, True for the training split.
        groups: Patient of each case.
        seed: Of the bootstrap and of which training cases are learned from, when there are very many.

    Returns:
        ``auroc``, ``low``, ``high``, ``cases``; None when a part lacks `FEWEST` cases of either kind.
    """
    parts = [np.bincount(positive[part].astype(int), minlength=2) for part in (learned, ~learned)]
    if min(part.min() for part in parts) < FEWEST:
        return None
    seen = np.flatnonzero(learned)
    seen = np.sort(np.random.default_rng(seed).permutation(seen)[:2 * MOST_CASES])
    model = make_pipeline(StandardScaler(), PCA(min(40, numbers.shape[1], len(seen)), random_state=seed),
                          StandardScaler(), LogisticRegression(C=0.1, max_iter=500, class_weight="balanced"))
    scores = model.fit(numbers[seen], positive[seen]).decision_function(numbers[~learned])
    weights = group_weights([group for group, own in zip(groups, learned, strict=True) if not own],
                            resamples=RESAMPLES, seed=seed)
    drawn = auroc(scores, positive[~learned], weights)
    low, high = np.nanpercentile(drawn[1:], (2.5, 97.5))
    return {"auroc": round(float(drawn[0]), 4), "low": round(float(low), 4), "high": round(float(high), 4),
            "cases": int((~learned).sum())}


def permuted(codes: np.ndarray, groups: Sequence[str], *, draws: int,
             rng: np.random.Generator) -> np.ndarray:
    """Label sets by chance, ``(draws, cases)``: shuffled between groups of one size, and inside each."""
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    order, sizes = np.argsort(member, kind="stable"), np.bincount(member)
    starts = np.cumsum(sizes) - sizes
    result = np.empty((draws, len(codes)), np.int16)
    for size in np.unique(sizes):
        places = order[starts[sizes == size][:, None] + np.arange(size)]
        block = codes[places]
        for draw in range(draws):
            result[draw, places] = rng.permuted(block[rng.permutation(len(block))], axis=1)
    return result


def cramers_v(tables: np.ndarray) -> np.ndarray:
    """Bias-corrected Cramér's V of counts ``(tables, labels, categories)``; 0 where one is constant."""
    total = tables.sum((1, 2), keepdims=True)
    across, down = tables.sum(2, keepdims=True), tables.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = across * down / total
        chi2 = np.nansum((tables - expected) ** 2 / expected, axis=(1, 2))
        n = total[:, 0, 0]
        r, k = (across > 0).sum((1, 2)), (down > 0).sum((1, 2))
        phi2 = np.maximum(0, chi2 / n - (r - 1) * (k - 1) / (n - 1))
        least = np.minimum(r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)) - 1
        return np.where(least > 0, np.minimum(1, np.sqrt(phi2 / np.where(least > 0, least, 1))), 0.0)


def scores_auroc(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each column of ``(cases, columns)``; 0.5 where a class is missing."""
    ranks = rankdata(scores, axis=0)
    ones = positive.sum(0)
    pairs = ones * (len(scores) - ones)
    above = (ranks * positive).sum(0) - ones * (ones + 1) / 2
    return np.where(pairs > 0, above / np.where(pairs > 0, pairs, 1), 0.5)


def cells_auroc(scores: np.ndarray, hits: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of cases in cells, all of a cell with one score; 0.5 where a class is missing.

    Args:
        scores: ``(draws, cells)``.
        hits: Cases of the class, ``(draws, cells)``.
        inside: Cases in each cell, ``(cells,)``.
    """
    order = np.argsort(scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, 1)
    ones = np.take_along_axis(hits, order, 1).astype(np.float64)
    zeros = inside[order].astype(np.float64) - ones
    # negatives below, and half of those level: a run of cells with one score counts as one
    below = np.cumsum(zeros, 1)
    first = np.concatenate([np.ones((len(scores), 1), bool), np.diff(ranked, axis=1) != 0], 1)
    places = np.arange(scores.shape[1])
    start = np.maximum.accumulate(np.where(first, places, 0), 1)
    last = np.concatenate([first[:, 1:], np.ones((len(scores), 1), bool)], 1)
    end = np.minimum.accumulate(np.where(last, places, scores.shape[1])[:, ::-1], 1)[:, ::-1]
    lower = np.take_along_axis(below, start, 1) - np.take_along_axis(zeros, start, 1)
    upper = np.take_along_axis(below, end, 1)
    pairs = ones.sum(1) * zeros.sum(1)
    area = (ones * (lower + upper) / 2).sum(1)
    return np.where(pairs > 0, area / np.where(pairs > 0, pairs, 1), 0.5)


def mutual_information(one: np.ndarray, two: np.ndarray) -> float:
    """Mutual information of two codings ``(cases,)`` in nats, as counted."""
    joint = np.zeros((one.max() + 1, two.max() + 1))
    np.add.at(joint, (one, two), 1 / len(one))
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float((joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])).sum())


def _elsewhere(hits: np.ndarray, inside: np.ndarray, bins: int) -> np.ndarray:
    """Share of the label in the same bin of all other folds, ``(draws, folds * bins)``, drawn to the mean."""
    hits = hits.reshape(len(hits), -1, bins).astype(np.float64)
    counts = np.broadcast_to(inside.reshape(1, -1, bins), hits.shape)
    other, cases = hits.sum(1, keepdims=True) - hits, counts.sum(1, keepdims=True) - counts
    mean = other.sum(2, keepdims=True) / np.maximum(cases.sum(2, keepdims=True), 1)
    return ((other + mean) / (cases + 1)).reshape(len(hits), -1)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given."""
    order = np.argsort(np.asarray(p), kind="stable")
    adjusted = np.zeros(len(p))
    for rank, place in enumerate(order):
        before = adjusted[order[rank - 1]] if rank else 0.0
        adjusted[place] = max(before, min(1.0, p[place] * (len(p) - rank)))
    return [float(value) for value in adjusted]


def _kernel(numbers: np.ndarray) -> np.ndarray:
    sd = numbers.std(0)
    scaled = (numbers - numbers.mean(0))[:, sd > 1e-12] / sd[sd > 1e-12]
    if not scaled.shape[1]:
        return np.zeros((len(numbers), len(numbers)))
    linear = scaled @ scaled.T / scaled.shape[1]
    square = np.diag(linear)
    distance = np.maximum(0, square[:, None] + square[None, :] - 2 * linear)
    return linear + np.exp(-distance / 2)


def _p(effect: float, by_chance: np.ndarray) -> float:
    """Share of label sets, the true one counted, with at least this effect; equal effects count."""
    return float((1 + (by_chance >= effect - 1e-12).sum()) / (1 + len(by_chance)))
