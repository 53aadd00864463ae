"""Which cases a reader should label next: one door, `acquire`, for the simulation and the server.

Scores that need only the sampled answers: ``entropy``, ``margin``, ``least_confidence``, ``bald`` (mutual
information, Houlsby et al. 2011), ``powerbald`` (its logarithm with Gumbel noise: a draw in proportion to
it, Kirsch et al. 2021). Scores that need only vectors: ``coreset``, ``typiclust``. Both: ``badge``,
``entropy_density``; ``batchbald`` needs samples under shared masks. ``random`` needs nothing, and is the
rival the others must beat.

Where patients are known the patient is the unit: all images of a chosen patient are taken, because a
reader has them all before them. As every one of them must then be labelled, a patient's score is the mean
over the images; a patient's vector is the mean vector, and the gradient and the joint answers are those
of the patient's image of highest entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dcaf_monai import diversity
from dcaf_monai.uncertainty import Uncertainty, summarize

STRATEGIES = ("random", "entropy", "margin", "least_confidence", "bald", "batchbald", "powerbald", "badge",
              "coreset", "typiclust", "entropy_density")
WITHOUT_MODEL = ("random", "coreset", "typiclust")
"""Strategies that need no answer of a model: fit for the first cases of all."""
POWER = 1.0
"""Exponent of the mutual information in PowerBALD; 0 would be random, a large one plain BALD."""


@dataclass(frozen=True)
class Pool:
    """Cases that wait for a label, in a fixed order, and what is known of them.

    Args:
        pooled: ``(cases, units)``, what distances are measured in.
        logits: ``(samples, cases, classes)``, sample t of all cases from one network (shared masks);
            None when there is no model yet.
        hidden: ``(cases, hidden)``, what the model's last layer reads, for ``badge``; None takes
            ``pooled``: the gradient of a last layer that reads the pooled vector directly.
        groups: Patient of each case; None when each case is a unit of its own.
        labelled: ``(labelled, units)`` vectors of what is labelled: of cases, or mean vectors of
            patients where groups are given (`means_by_group`).
        temperature: Of the model; divides the logits.

    Raises:
        ValueError: When the sizes do not fit or a number is not finite.
    """

    pooled: np.ndarray
    logits: torch.Tensor | None = None
    hidden: np.ndarray | None = None
    groups: Sequence[str] | None = None
    labelled: np.ndarray | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        cases = len(self.pooled)
        sizes = [None if part is None else length for part, length in (
            (self.logits, 0 if self.logits is None else self.logits.shape[1]),
            (self.hidden, 0 if self.hidden is None else len(self.hidden)),
            (self.groups, 0 if self.groups is None else len(self.groups)))]
        if self.pooled.ndim != 2 or any(size not in (None, cases) for size in sizes):
            raise ValueError(f"pool: need pooled (cases, units) and as many logits, hidden and groups, got "
                             f"{self.pooled.shape} and {sizes}.")
        if self.labelled is not None and self.labelled.shape[1:] != self.pooled.shape[1:]:
            raise ValueError(f"labelled: need vectors of {self.pooled.shape[1]} units, got "
                             f"{self.labelled.shape}.")
        if not np.isfinite(self.pooled).all():
            raise ValueError("pooled: need finite numbers, got inf or nan. Check the vectors.")


@dataclass(frozen=True)
class Acquired:
    """Cases to label.

    Args:
        cases: Their numbers in the pool, the first first; those of one patient together.
        random: Whether each came by the random share: these are a fair sample of the pool as it is now.
    """

    cases: np.ndarray
    random: np.ndarray


def acquire(strategy: str, pool: Pool, *, count: int, seed: int, random_share: float = 0.0) -> Acquired:
    """The next cases to label, by one strategy.

    Args:
        strategy: One of `STRATEGIES`.
        pool: The unlabelled cases.
        count: Cases wanted. Where patients are known whole patients are taken until there are at least
            so many.
        seed: Of everything random; the same arguments give the same cases.
        random_share: 0 to 1, share of units (cases, or patients) drawn at random from the whole pool
            before the strategy chooses, and spread evenly over the order: a monitor of the model that
            the strategy does not bias among what is still unlabelled. In a small batch it holds on
            average over seeds.

    Raises:
        ValueError: For an unknown strategy, a count below 1, a share outside [0, 1], or a strategy that
            needs a model on a pool without logits.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: need one of {', '.join(STRATEGIES)}, got {strategy[:40]!r}.")
    if count < 1:
        raise ValueError(f"count: need at least 1, got {count}.")
    if not 0 <= random_share <= 1:
        raise ValueError(f"random_share: need 0 to 1, got {random_share}.")
    if pool.logits is None and strategy not in WITHOUT_MODEL:
        raise ValueError(f"strategy {strategy}: need logits of a model, got none. Start with "
                         f"{', '.join(WITHOUT_MODEL)}.")
    if not len(pool.pooled):
        return Acquired(np.empty(0, np.int64), np.empty(0, bool))
    units = _units(pool)
    slots = min(count, len(units))
    monitor = np.random.default_rng([seed, 1])
    is_random = np.diff(np.floor(np.arange(slots + 1) * random_share + monitor.random())) > 0
    drawn = monitor.permutation(len(units))[:is_random.sum()]
    order = _order(strategy, pool, units, slots, count, seed) if not is_random.all() else drawn
    ranked = iter(order[~np.isin(order, drawn)])
    chance = iter(drawn)
    cases: list[int] = []
    by_chance: list[bool] = []
    for random in is_random:
        if len(cases) >= count:
            break
        unit = next(chance if random else ranked)
        cases += units[unit].tolist()
        by_chance += [bool(random)] * len(units[unit])
    return Acquired(np.array(cases, np.int64), np.array(by_chance, bool))


def means_by_group(vectors: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Mean vector ``(groups, units)`` of each group, in the order of first appearance."""
    _, first, member = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    sums = np.zeros((len(first), vectors.shape[1]))
    np.add.at(sums, member, vectors)
    means = sums / np.bincount(member, minlength=len(first))[:, None]
    return means[np.argsort(first)].astype(np.float32)


def _units(pool: Pool) -> list[np.ndarray]:
    """Case numbers of each unit, units in the order of their first case."""
    cases = np.arange(len(pool.pooled))
    if pool.groups is None:
        return list(cases[:, None])
    _, first, member = np.unique(np.asarray(pool.groups), return_index=True, return_inverse=True)
    by_group = np.split(np.argsort(member, kind="stable"), np.cumsum(np.bincount(member))[:-1])
    return [by_group[group] for group in np.argsort(first)]


def _order(strategy: str, pool: Pool, units: list[np.ndarray], slots: int, count: int,
           seed: int) -> np.ndarray:
    """Numbers of units, the best first, at least ``slots`` of them."""
    if strategy == "random":
        return np.random.default_rng([seed, 2]).permutation(len(units))
    labelled = np.empty((0, pool.pooled.shape[1])) if pool.labelled is None else pool.labelled
    if strategy in WITHOUT_MODEL:
        vectors = pool.pooled if pool.groups is None else means_by_group(pool.pooled, pool.groups)
        if strategy == "coreset":
            return diversity.coreset(vectors, labelled, slots)
        # count is in images, a cluster is for a patient
        expected = -(-count * len(units) // len(pool.pooled))
        return diversity.typiclust(vectors, labelled, slots, seed=seed, clusters=len(labelled) + expected)
    assert pool.logits is not None
    told = summarize(pool.logits, pool.temperature)
    if strategy in ("batchbald", "badge"):
        entropy = told.predictive_entropy.numpy()
        stands = np.array([unit[entropy[unit].argmax()] for unit in units])
        if strategy == "badge":
            vectors = pool.pooled if pool.hidden is None else pool.hidden
            return diversity.badge(told.probs.numpy()[stands], vectors[stands], slots, seed=seed)
        sampled = torch.softmax(pool.logits[:, stands].double() / pool.temperature, dim=-1)
        return diversity.batch_bald(sampled.numpy(), slots, seed=seed)
    scores = _scores(strategy, told, pool)
    scores = np.array([scores[unit].mean() for unit in units])
    if strategy == "powerbald":
        with np.errstate(divide="ignore"):  # no information: never before one with some
            scores = POWER * np.log(scores) + np.random.default_rng([seed, 3]).gumbel(size=len(scores))
    return np.argsort(-scores, kind="stable")


def _scores(strategy: str, told: Uncertainty, pool: Pool) -> np.ndarray:
    """How much each case is worth, ``(cases,)``."""
    if strategy in ("bald", "powerbald"):
        return told.mutual_information.numpy()
    if strategy == "entropy":
        return told.predictive_entropy.numpy()
    if strategy == "entropy_density":
        density = diversity.typicality(pool.pooled)
        # copies of one image are as dense as anything, not infinitely so
        finite = density[np.isfinite(density)]
        return told.predictive_entropy.numpy() * np.minimum(density, finite.max() if len(finite) else 1.0)
    best = told.probs.topk(2, dim=-1).values.numpy()
    return best[:, 1] - best[:, 0] if strategy == "margin" else -best[:, 0]
