"""Sets of classes that hold the right one in a stated share of cases, by split conformal prediction.

A score says how badly a class fits a case. The threshold is the ``ceil((n + 1)(1 - alpha))``-th
smallest score of the right classes of ``n`` calibration cases; a class is in the set of a new case
when its score is at most the threshold. For cases exchangeable with the calibration cases the set
holds the right class with probability at least ``1 - alpha``, whatever the model (Vovk et al. 2005);
at another hospital, on another device or at another prevalence nothing is promised. Probabilities
are the means over dropout samples under the model's fixed masks, so calibration and use see the same
network.

Scores, with classes ranked from the most probable and ties in the order of the classes:

- ``lac`` (Sadinle et al. 2019): one minus the probability. Smallest sets on average; may be empty.
- ``aps`` (Romano et al. 2020): the probability of all classes ranked before, plus ``u`` times the
  class's own. Larger sets for harder cases.
- ``raps`` (Angelopoulos et al. 2021): aps plus ``lambda_`` for every rank beyond ``k``.

aps and raps are deterministic unless a seed is given: ``u`` is 0, so that an answer repeats, the most
probable class is always in the set, and the surest cases get the smallest sets. (With ``u`` = 1 and few
classes the surest cases would get *empty* sets.) The price: the top class always scores 0, and where the
model is right more often than ``1 - alpha`` the sets are just that class and cover as often as the model
is right, which is more than asked for. With a seed ``u`` is drawn per case from (seed, uid), coverage is
exact up to ``1 / (n + 1)``, and some sets are empty.

A threshold for each class (Mondrian, ``conditional``) keeps the promise within every class, which one
threshold for all does not: it may cover the rare class far too seldom. Images of one patient count as
cases here; the intervals of `coverage` draw patients.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dcaf_monai.image import Notice
from dcaf_monai.metrics import check, group_weights, interval

Method = Literal["lac", "aps", "raps"]
ALPHAS = (0.1, 0.05)
"""Error rates that are reported."""
ENOUGH = 100
"""Calibration cases of a class below which true coverage strays by more than 3 points (one sd, alpha 0.1)."""
_ROUNDING = 1e-9  # scores that differ by less are equal, whichever order their sums were taken in
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class ConformalSets(BaseModel):
    """Thresholds of a model, as they stand in its file.

    Args:
        method: The score.
        alpha: Share of cases whose set may miss the right class, in (0, 1).
        conditional: Whether each class has a threshold of its own.
        classes: In the order of the model's outputs.
        thresholds: Of each class; None is infinite: too few cases, the class is in every set.
        cases: Calibration cases of each class.
        lambda_: Penalty per rank of raps; 0 otherwise.
        k: Ranks without penalty.
        seed: Of the randomisation of aps and raps; None for none.
        roles: Digests of the patients whose cases served to ``fit`` (the temperature) and to
            ``calibrate`` (the thresholds); see `digests`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: Method
    alpha: float = Field(gt=0, lt=1)
    conditional: bool
    classes: tuple[str, ...] = Field(min_length=2)
    thresholds: Mapping[str, Annotated[float, Field(ge=0, allow_inf_nan=False)] | None]
    cases: Mapping[str, Annotated[int, Field(ge=0)]]
    lambda_: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    k: int = Field(default=1, ge=1)
    seed: int | None = None
    roles: Mapping[Literal["fit", "calibrate"], tuple[Digest, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _parts_fit(self) -> ConformalSets:
        for name, part in (("thresholds", self.thresholds), ("cases", self.cases)):
            if set(part) != set(self.classes):
                raise ValueError(f"{name}: need one for each of {', '.join(self.classes)}, "
                                 f"got {', '.join(part)}.")
        if self.seed is not None and self.method == "lac":
            raise ValueError("seed: need none for lac, which has no random part.")
        shared = len(set(self.roles.get("fit", ())) & set(self.roles.get("calibrate", ())))
        if shared:
            raise ValueError(f"roles: need different patients to fit and to calibrate, got {shared} in both.")
        return self

    def sets(self, probs: np.ndarray, *, uids: Sequence[str] | None = None) -> np.ndarray:
        """Which classes are in the set of each case, bool ``(cases, classes)``.

        Args:
            probs: ``(cases, classes)``, rows summing to one.
            uids: Of the images; needed with a seed, not looked at without.

        Raises:
            ValueError: For rows that are no probabilities of these classes, or a seed without uids.
        """
        probs = _probabilities(probs, len(self.classes))
        found = scores(probs, method=self.method, lambda_=self.lambda_, k=self.k,
                       u=_tie_breakers(uids, len(probs), self.seed))
        limits = [math.inf if (limit := self.thresholds[name]) is None else limit for name in self.classes]
        return found <= np.array(limits) + _ROUNDING

    def names(self, probs: np.ndarray, *, uid: str | None = None) -> list[str]:
        """Classes in the set of one case ``(classes,)``, the most probable first.

        Raises:
            ValueError: As `sets`.
        """
        row = np.asarray(probs, np.float64)[None]
        inside = self.sets(row, uids=None if uid is None else [uid])[0]
        return [self.classes[column] for column in np.argsort(-row[0], kind="stable") if inside[column]]

    def notices(self) -> tuple[Notice, ...]:
        """What to know before relying on the sets: classes with few or far too few cases."""
        found = []
        always = [name for name in self.classes if self.thresholds[name] is None]
        if always:
            counts = self.cases if self.conditional else {name: sum(self.cases.values()) for name in always}
            found.append(Notice("class_always_in_set", f"Sets: a promise of {1 - self.alpha:.0%} needs "
                                f"{math.ceil(1 / self.alpha - 1 - 1e-9)} calibration cases, got "
                                f"{_counted(counts, always)}. Such a class is in every set."))
        few = [name for name in self.classes if self.cases[name] < ENOUGH]
        if few:
            found.append(Notice("few_calibration_cases", f"Sets: need {ENOUGH} calibration cases of each "
                                f"class for coverage within a few points of {1 - self.alpha:.0%}, got "
                                f"{_counted(self.cases, few)}. Take the coverage of these as rough."))
        return tuple(found)


def scores(probs: np.ndarray, *, method: Method = "lac", lambda_: float = 0.0, k: int = 1,
           u: np.ndarray | float = 0.0) -> np.ndarray:
    """How badly each class fits each case, ``(cases, classes)``, at least 0; the module header defines it.

    Args:
        probs: ``(cases, classes)``.
        method: ``lac``, ``aps`` or ``raps``.
        lambda_: Of raps.
        k: Of raps.
        u: Share of a class's own probability in aps and raps, in [0, 1]; ``(cases,)`` or one for all.

    Raises:
        ValueError: For another method.
    """
    if method == "lac":
        return 1 - probs
    if method not in ("aps", "raps"):
        raise ValueError(f"method: need lac, aps or raps, got {method!r}.")
    order = np.argsort(-probs, axis=1, kind="stable")
    ranked = np.take_along_axis(probs, order, axis=1)
    before = np.cumsum(np.pad(ranked, ((0, 0), (1, 0))), axis=1)[:, :-1]
    found = before + np.reshape(u, (-1, 1)) * ranked
    if method == "raps":
        found = found + lambda_ * np.maximum(0, np.arange(1, probs.shape[1] + 1) - k)
    result = np.empty_like(found)
    np.put_along_axis(result, order, found, axis=1)
    return result


def quantile(found: np.ndarray, alpha: float) -> float:
    """The ``ceil((n + 1)(1 - alpha))``-th smallest of ``n`` scores; infinite when there are too few."""
    place = math.ceil((len(found) + 1) * (1 - alpha) - 1e-9)  # 0.95 * 20 is 19, not 19.000000000000004
    return float(np.sort(found)[place - 1]) if place <= len(found) else math.inf


def fit_conformal(probs: np.ndarray, labels: np.ndarray, groups: Sequence[str], classes: Sequence[str], *,
                  method: Method = "lac", alpha: float = 0.1, conditional: bool = True,
                  lambda_: float = 0.1, k: int = 1, fit_groups: Iterable[str] = (),
                  uids: Sequence[str] | None = None, seed: int | None = None) -> ConformalSets:
    """Thresholds from calibration cases, which nothing else of the model was chosen on.

    Args:
        probs: ``(cases, classes)``, rows summing to one.
        labels: ``(cases,)`` class indices.
        groups: Patient of each case.
        classes: Class names in the order of the columns.
        method: The score.
        alpha: Share of cases whose set may miss the right class, in (0, 1); `ALPHAS` are usual.
        conditional: A threshold for each class, rather than one for all.
        lambda_: Of raps.
        k: Of raps.
        fit_groups: Patients whose cases chose the temperature; none of them may be in ``groups``.
        uids: Of the images; needed with a seed.
        seed: Randomises aps and raps.

    Raises:
        ValueError: For shapes, probabilities, labels or settings that do not fit, or a patient in both roles.
    """
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
    check(probs, labels, groups, classes)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: need a share between 0 and 1, got {alpha}.")
    fit_groups = list(fit_groups)
    require_disjoint(fit_groups, groups, ())
    found = scores(probs, method=method, lambda_=lambda_, k=k, u=_tie_breakers(uids, len(probs), seed))
    own = found[np.arange(len(labels)), labels]
    limits = {name: quantile(own[labels == column] if conditional else own, alpha)
              for column, name in enumerate(classes)}
    penalised = method == "raps"
    return ConformalSets(
        method=method, alpha=alpha, conditional=conditional, classes=tuple(classes),
        thresholds={name: limit if math.isfinite(limit) else None for name, limit in limits.items()},
        cases={name: int((labels == column).sum()) for column, name in enumerate(classes)},
        lambda_=lambda_ if penalised else 0.0, k=k if penalised else 1, seed=seed,
        roles={"fit": digests(fit_groups), "calibrate": digests(groups)})


def coverage(sets: np.ndarray, labels: np.ndarray, classes: Sequence[str], groups: Sequence[str], *,
             resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """How often sets hold the right class, and how large they are; plain JSON values.

    Every figure is ``{"value", "low", "high"}`` with a 95 % interval over patients, as in
    `metrics.report`; None where there is no case.

    Args:
        sets: bool ``(cases, classes)``.
        labels: ``(cases,)`` class indices.
        classes: Class names in the order of the columns.
        groups: Patient of each case.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Returns:
        ``cases``, ``patients``, ``resamples``; ``coverage``, ``mean_size``, ``empty_share``;
        ``per_class``: name to ``cases``, ``coverage``, ``mean_size``; ``per_size``: size as text, from 0
        to the number of classes, to ``cases``, ``share``, ``coverage``.

    Raises:
        ValueError: For shapes that do not fit, or no case.
    """
    sets, labels = np.asarray(sets, bool), np.asarray(labels)
    if sets.shape != (len(labels), len(classes)) or len(groups) != len(labels) or not len(labels):
        raise ValueError("sets, labels, groups: need (cases, classes), (cases,) and (cases,) with at least "
                         f"one case and {len(classes)} classes, got {sets.shape}, {labels.shape} and "
                         f"{len(groups)}.")
    weights, patients = group_weights(groups, resamples=resamples, seed=seed), np.asarray(groups)
    covered, size = sets[np.arange(len(labels)), labels], sets.sum(1)

    def figure(values: np.ndarray, among: np.ndarray) -> dict[str, float | None]:
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = weights[:, among] @ values[among] / weights[:, among].sum(1)
        return interval(drawn, len(set(patients[among])))

    everyone = np.full(len(labels), True)
    return {
        "cases": len(labels), "patients": len(set(groups)), "resamples": resamples,
        "coverage": figure(covered, everyone), "mean_size": figure(size, everyone),
        "empty_share": figure(size == 0, everyone),
        "per_class": {name: {"cases": int((labels == column).sum()),
                             "coverage": figure(covered, labels == column),
                             "mean_size": figure(size, labels == column)}
                      for column, name in enumerate(classes)},
        "per_size": {str(number): {"cases": int((size == number).sum()),
                                   "share": figure(size == number, everyone),
                                   "coverage": figure(covered, size == number)}
                     for number in range(len(classes) + 1)}}


def split_roles(groups: Sequence[str], labels: np.ndarray, *, share: float = 0.5,
                seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cases to fit on and cases to calibrate on, no patient in both, classes shared out alike.

    Patients are dealt one by one, those of the rarest class and with the most images first, each to the
    side that is still further from its share of the patient's classes (d'Hondt's rule). The order of the
    cases does not matter.

    Args:
        groups: Patient of each case.
        labels: ``(cases,)`` class indices.
        share: Of the cases to fit on, in (0, 1).
        seed: Decides between patients that are alike.

    Returns:
        Two rising arrays of case numbers; neither is empty.

    Raises:
        ValueError: For fewer than two patients, a share out of range, or lengths that differ.
    """
    if len(groups) != len(labels):
        raise ValueError(f"groups, labels: need as many of each, got {len(groups)} and {len(labels)}.")
    if not 0 < share < 1:
        raise ValueError(f"share: need a number between 0 and 1, got {share}.")
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"groups: need at least 2 patients to part, got {len(names)}.")
    _, column = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.zeros((len(names), column.max() + 1))
    np.add.at(counts, (member, column), 1)
    total = counts.sum(0)
    rarest = np.where(counts > 0, total, np.inf).min(1)
    order = np.lexsort((np.random.default_rng(seed).permutation(len(names)), -counts.sum(1), rarest))
    goal = np.outer((1 - share, share), total)
    dealt, fits = np.zeros_like(goal), np.zeros(len(names), bool)
    for patient in order:
        # How full each side would be in the patient's classes, had it taken the patient.
        full = ((dealt + counts[patient]) / goal) @ counts[patient]
        fits[patient] = full[1] <= full[0]
        dealt[int(fits[patient])] += counts[patient]
    if fits.all() or not fits.any():
        smallest = np.argmin(counts.sum(1))
        fits[smallest] = not fits[smallest]
    return np.flatnonzero(fits[member]), np.flatnonzero(~fits[member])


def validation_roles(groups: Sequence[str], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Validation cases that choose (epoch, temperature, gate), and those that only calibrate conformal sets.

    The same for every training on one frozen split, so that no round chooses with what another calibrates on.
    With a single patient all choose and none calibrate. Arguments as in `split_roles`.
    """
    if len(set(groups)) < 2:
        return np.arange(len(groups)), np.empty(0, np.int64)
    return split_roles(groups, labels)


def digests(groups: Iterable[str]) -> tuple[str, ...]:
    """Short digests of different patients, sorted: 12 hex digits of the SHA-256 of the name.

    They recognise a patient who is met again and show no name. They are pseudonyms all the same:
    whoever can list all possible names can find which digest is whose.
    """
    return tuple(sorted({hashlib.sha256(str(group).encode()).hexdigest()[:12] for group in groups}))


def overlap_with_roles(roles: Mapping[str, Iterable[str]], groups: Iterable[str]) -> dict[str, int]:
    """How many of these patients are among the digests of each role of a model, by role."""
    own = set(digests(groups))
    return {role: len(own & set(known)) for role, known in roles.items()}


def require_disjoint(fit: Iterable[str], calibrate: Iterable[str], test: Iterable[str]) -> None:
    """Refuse a patient in two of the three roles.

    Raises:
        ValueError: With the number of shared patients of each pair that shares some.
    """
    roles = {"fit": set(fit), "calibrate": set(calibrate), "test": set(test)}
    pairs = (("fit", "calibrate"), ("fit", "test"), ("calibrate", "test"))
    shared = [f"{len(both)} in {one} and {other}" for one, other in pairs
              if (both := roles[one] & roles[other])]
    if shared:
        raise ValueError("roles: need no patient in two of fit, calibrate and test, got "
                         f"{', '.join(shared)}. Split by patient, with split_roles.")


def _tie_breakers(uids: Sequence[str] | None, cases: int, seed: int | None) -> np.ndarray | float:
    """``u`` of every case in [0, 1): from its uid, so that it does not depend on the batch."""
    if seed is None:
        return 0.0
    if uids is None or len(uids) != cases:
        raise ValueError(f"uids: need one for each of {cases} cases, as these sets are randomised, "
                         f"got {'none' if uids is None else len(uids)}.")
    drawn = [hashlib.sha256(f"{seed}\n{uid}".encode()).digest()[:8] for uid in uids]
    return np.array([(int.from_bytes(digest, "big") >> 11) / 2**53 for digest in drawn])


def _probabilities(probs: np.ndarray, classes: int) -> np.ndarray:
    probs = np.asarray(probs, np.float64)
    if probs.ndim != 2 or probs.shape[1] != classes:
        raise ValueError(f"probs: need (cases, {classes}), got {probs.shape}.")
    if not ((probs >= 0).all() and np.allclose(probs.sum(1), 1, atol=1e-4)):  # also refuses nan
        raise ValueError("probs: need rows of probabilities that sum to one, got others. "
                         "Give probabilities, not logits.")
    return probs


def _counted(counts: Mapping[str, int], names: Sequence[str]) -> str:
    return ", ".join(f"{counts[name]} of {name}" for name in names)
