"""Active learning replayed on a labelled cohort: how many labels each strategy would have needed.

From a few labelled patients on, a head learns on what is labelled, `acquire` chooses the next patients
from the rest of the training split, and again. Guards against the usual self-deceptions (Lüth et al. 2023;
Mittal et al. 2019): one fixed recipe for every strategy including random, several seeds and batch sizes, a
pool with its own class shares, no validation labels that nobody paid for, and vectors that no label has
touched (`vectors`). The judged splits give curves and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from dcaf_monai.acquire import STRATEGIES, WITHOUT_MODEL, Pool, acquire, means_by_group
from dcaf_monai.learner import Recipe, fit_heads
from dcaf_monai.metrics import auroc
from dcaf_monai.uncertainty import dropout_masks, penultimate, sample_logits, summarize
from dcaf_monai.vectors import Vectors

Progress = Callable[[str, int, int, str], None]
FORMAT = 1
"""Raise it when the same plan would give other runs."""
FULL = "all labels"
_Verdicts = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Plan:
    """What is replayed.

    Args:
        strategies: Of `acquire.STRATEGIES`; ``random`` is always run besides.
        batch_sizes: Images labelled between two trainings (whole patients, so at least so many).
        seeds: Repetitions, each with its own first patients, initial weights and draws.
        budget: Share of the training images at which a run ends.
        start: Images labelled before the first training; None for one batch.
        cold_start: How these are chosen: ``random``, or ``typiclust`` (except for the strategy random).
        random_share: Share of each batch drawn at random.
        components: Principal components of the training vectors that the head learns on; 0 for all units.
        whiten: 0 leaves the components their variances, 1 gives all the same, 0.5 half the way.
        judge: The split whose curve is told; both are kept in the runs. Choose settings on ``val`` and
            look at ``test`` once.
        recipe: Of every head.

    Raises:
        ValueError: For a value that makes no plan.
    """

    strategies: tuple[str, ...] = STRATEGIES
    batch_sizes: tuple[int, ...] = (10, 20)
    seeds: int = 5
    budget: float = 0.5
    start: int | None = None
    cold_start: Literal["random", "typiclust"] = "random"
    random_share: float = 0.0
    components: int = 128
    whiten: float = 0.0
    judge: Literal["val", "test"] = "test"
    recipe: Recipe = field(default_factory=lambda: Recipe(
        hidden=128, learning_rate=3e-3, steps=100))

    def __post_init__(self) -> None:
        unknown = [name for name in self.strategies if name not in STRATEGIES]
        if unknown or not self.strategies:
            raise ValueError(f"strategies: need some of {', '.join(STRATEGIES)}, got "
                             f"{unknown[0][:40] if unknown else 'none'}.")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes: need whole numbers from 1, got {self.batch_sizes}.")
        if self.seeds < 2:
            raise ValueError(f"seeds: need at least 2 to tell a difference from chance, got {self.seeds}.")
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget: need a share above 0 and at most 1, got {self.budget}.")
        if self.start is not None and self.start < 1:
            raise ValueError(f"start: need at least 1 image, got {self.start}.")
        if self.components < 0 or not 0 <= self.whiten <= 1 or not 0 <= self.random_share <= 1:
            raise ValueError("components, whiten, random_share: need 0 or more, 0 to 1 and 0 to 1, got "
                             f"{self.components}, {self.whiten} and {self.random_share}.")
        if self.cold_start not in ("random", "typiclust") or self.judge not in ("val", "test"):
            raise ValueError("cold_start, judge: need random or typiclust, and val or test, got "
                             f"{self.cold_start!r} and {self.judge!r}.")

    @property
    def contenders(self) -> tuple[str, ...]:
        """``random`` first, then the others asked for, each once."""
        return tuple(dict.fromkeys(("random", *self.strategies)))


@dataclass(frozen=True)
class Run:
    """One strategy, batch size and seed from the first labels to the budget.

    Args:
        strategy, batch_size, seed: Whose run.
        labels, patients: What was labelled at each training.
        auroc: Macro AUROC after each training, on each of ``val`` and ``test`` that has cases.
        accuracy: Share of right answers, likewise.
        chosen: Numbers of the training cases in the order they were labelled.
    """

    strategy: str
    batch_size: int
    seed: int
    labels: tuple[int, ...]
    patients: tuple[int, ...]
    auroc: Mapping[str, tuple[float, ...]]
    accuracy: Mapping[str, tuple[float, ...]]
    chosen: tuple[int, ...]


@dataclass(frozen=True)
class Simulation:
    """All runs of a plan.

    Args:
        plan: What was asked.
        classes: Class names.
        images, patients: In the training split.
        judged: Images of the judged split.
        full: Macro AUROC on it of each seed when every training label is there.
        runs: Every contender, batch size and seed.
    """

    plan: Plan
    classes: tuple[str, ...]
    images: int
    patients: int
    judged: int
    full: tuple[float, ...]
    runs: tuple[Run, ...]

    def of(self, strategy: str, batch_size: int) -> tuple[Run, ...]:
        """Runs of a strategy and batch size, by seed."""
        return tuple(run for run in self.runs if (run.strategy, run.batch_size) == (strategy, batch_size))


def simulate(vectors: Vectors, plan: Plan, *, runs: Path, progress: Progress | None = None) -> Simulation:
    """Replay a plan, or what is left of it.

    Args:
        vectors: Of the cohort.
        plan: What to replay.
        runs: JSON-lines file of finished runs; read when it is there, and each finished run is added, so
            that a stopped simulation goes on and a larger plan keeps what a smaller one has done.
        progress: Called with (stage, done, total, note).

    Raises:
        ValueError: When the training split lacks a class or the judged split is empty, or the start is
            more than the budget allows.
    """
    bench = _Bench(vectors, plan)
    done = _read(runs, bench.key)
    jobs = [(FULL, 0), *((strategy, size) for size in plan.batch_sizes for strategy in plan.contenders)]
    for number, (strategy, size) in enumerate(jobs):
        if progress:
            progress("simulate", number, len(jobs), f"{strategy} {size or ''}".strip())
        missing = [seed for seed in range(plan.seeds) if (strategy, size, seed) not in done]
        if missing:
            found = bench.full(missing) if strategy == FULL else bench.replay(strategy, size, missing)
            _append(runs, bench.key, found)
            done |= {(run.strategy, run.batch_size, run.seed): run for run in found}
    if progress:
        progress("simulate", len(jobs), len(jobs), "")
    told = tuple(done[strategy, size, seed] for strategy, size in jobs[1:] for seed in range(plan.seeds))
    full = tuple(done[FULL, 0, seed].auroc[plan.judge][-1] for seed in range(plan.seeds))
    return Simulation(plan, vectors.classes, len(bench.pool), len(set(bench.groups)),
                      int((vectors.split == plan.judge).sum()), full, told)


class _Bench:
    """The cohort as one plan sees it, and the replay itself."""

    def __init__(self, vectors: Vectors, plan: Plan) -> None:
        self.plan, self.classes = plan, len(vectors.classes)
        train = vectors.split == "train"
        self.pool = np.flatnonzero(train)
        judges = {name: vectors.split == name for name in ("val", "test") if (vectors.split == name).any()}
        if plan.judge not in judges or len(set(vectors.labels[train])) < self.classes:
            raise ValueError(f"vectors: need a training case of every class and a {plan.judge} split, got "
                             f"{len(set(vectors.labels[train]))} of {self.classes} classes and the splits "
                             f"{', '.join(sorted(set(vectors.split)))}.")
        self.most = int(plan.budget * len(self.pool))
        first = max(plan.start or max(plan.batch_sizes), 1)
        if first > self.most:
            raise ValueError(f"budget: need room for the first {first} images, got {self.most} of "
                             f"{len(self.pool)}. Raise it, or start with less.")
        self.values = represented(vectors.values, train, components=plan.components, whiten=plan.whiten)
        self.labels, self.groups = vectors.labels[train], vectors.groups[train]
        self._train = self.values[train]
        self._judges = {name: (torch.from_numpy(self.values[judged]), vectors.labels[judged])
                        for name, judged in judges.items()}
        digest = hashlib.sha256(json.dumps([FORMAT, len(vectors.classes), {
            name: value for name, value in asdict(plan).items()
            if name not in ("strategies", "batch_sizes", "seeds", "judge")}], sort_keys=True).encode())
        for part in (vectors.values, vectors.labels, np.unique(vectors.groups, return_inverse=True)[1],
                     train, *judges.values()):
            digest.update(np.ascontiguousarray(part).tobytes())
        self.key = digest.hexdigest()[:16]

    def full(self, seeds: Sequence[int]) -> list[Run]:
        """The same learner with every training label."""
        everything = np.arange(len(self.pool))
        heads = self._heads([everything] * len(seeds), [_seed(seed, 10 ** 6) for seed in seeds])
        return [Run(FULL, 0, seed, (len(everything),), (len(set(self.groups)),),
                    *_by_split([self._judged(head)]), ()) for seed, head in zip(seeds, heads, strict=True)]

    def replay(self, strategy: str, size: int, seeds: Sequence[int]) -> list[Run]:
        """Runs of one strategy side by side; each is what it would be alone."""
        chosen = [self._first(strategy, size, seed) for seed in seeds]
        sizes: list[list[tuple[int, int]]] = [[] for _ in seeds]
        told: list[list[_Verdicts]] = [[] for _ in seeds]
        for turn in range(len(self.pool)):
            going = [place for place, cases in enumerate(chosen)
                     if not sizes[place] or sizes[place][-1][0] < len(cases)]
            if not going:
                break
            heads = self._heads([chosen[place] for place in going],
                                [_seed(seeds[place], turn) for place in going])
            for place, head in zip(going, heads, strict=True):
                cases = chosen[place]
                sizes[place].append((len(cases), len(set(self.groups[cases]))))
                told[place].append(self._judged(head))
                if len(cases) < min(self.most, len(self.pool)):
                    more = self._next(strategy, size, cases, head, _seed(seeds[place], turn))
                    chosen[place] = np.concatenate([cases, more])
        return [Run(strategy, size, seed, tuple(images for images, _ in sizes[place]),
                    tuple(patients for _, patients in sizes[place]), *_by_split(told[place]),
                    tuple(chosen[place].tolist()))
                for place, seed in enumerate(seeds)]

    def _first(self, strategy: str, size: int, seed: int) -> np.ndarray:
        how = "random" if strategy == "random" else self.plan.cold_start
        # the same first patients whatever comes after
        return acquire(how, Pool(self._train, groups=self.groups.tolist()), count=self.plan.start or size,
                       seed=_seed(seed, 10 ** 6 + 1)).cases

    def _next(self, strategy: str, size: int, labelled: np.ndarray, head: nn.Sequential,
              seed: int) -> np.ndarray:
        rest = np.setdiff1d(np.arange(len(self.pool)), labelled)
        waiting = torch.from_numpy(self._train[rest])
        needs = strategy not in WITHOUT_MODEL
        pool = Pool(self._train[rest], groups=self.groups[rest].tolist(),
                    logits=self._sampled(head, waiting) if needs else None,
                    hidden=penultimate(head, waiting).numpy() if needs else None,
                    labelled=means_by_group(self._train[labelled], self.groups[labelled].tolist()))
        return rest[acquire(strategy, pool, count=size, seed=seed,
                            random_share=self.plan.random_share).cases]

    def _heads(self, labelled: list[np.ndarray], seeds: list[int]) -> list[nn.Sequential]:
        return fit_heads(self._train, self.labels, labelled, self.classes, seeds=seeds,
                         recipe=self.plan.recipe)

    def _sampled(self, head: nn.Sequential, vectors: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return sample_logits(head, vectors, dropout_masks(head, self.plan.recipe.samples))

    def _judged(self, head: nn.Sequential) -> _Verdicts:
        """AUROC and accuracy on each judged split: the only place where their labels are read."""
        return {name: _verdict(summarize(self._sampled(head, vectors)).probs.numpy(), labels)
                for name, (vectors, labels) in self._judges.items()}


def _verdict(probs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Macro AUROC over the classes that have positive and negative cases, and accuracy."""
    once = np.ones((1, len(labels)))
    areas = [auroc(probs[:, label], labels == label, once)[0] for label in range(probs.shape[1])
             if 0 < (labels == label).sum() < len(labels)]
    return float(np.mean(areas)), float((probs.argmax(1) == labels).mean())


def _by_split(told: Sequence[_Verdicts]) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
    """AUROC and accuracy of each split, along the run."""
    areas, rights = ({name: tuple(verdict[name][kind] for verdict in told) for name in told[0]}
                     for kind in (0, 1))
    return areas, rights


def represented(values: np.ndarray, train: np.ndarray, *, components: int, whiten: float) -> np.ndarray:
    """Vectors as the head learns on them: standardised, turned to principal components, of unit size.

    Everything is measured on the training vectors without their labels.

    Args:
        values: ``(cases, units)``.
        train: ``(cases,)`` bool.
        components: How many; 0 leaves the units as they are.
        whiten: See `Plan`.
    """
    mean, deviation = values[train].mean(0, dtype=np.float64), values[train].std(0, dtype=np.float64)
    found = (values - mean) / np.where(deviation > 1e-6, deviation, 1)
    if components:
        _, spread, axes = np.linalg.svd(found[train], full_matrices=False)
        kept = min(components, int((spread > 1e-6 * spread[0]).sum()))
        found = found @ axes[:kept].T / (spread[:kept] / np.sqrt(train.sum())) ** whiten
    return np.ascontiguousarray(found / found[train].std(), np.float32)


def _seed(seed: int, turn: int) -> int:
    """A seed of its own for each turn of each run, the same for every strategy."""
    return int(np.random.SeedSequence([seed, turn]).generate_state(1)[0])


def _read(runs: Path, key: str) -> dict[tuple[str, int, int], Run]:
    found = {}
    for line in runs.read_text(encoding="utf-8").splitlines() if runs.exists() else []:
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # torn by a kill: the run is done again
        if entry.pop("key") == key:
            run = Run(**{name: _frozen(value) for name, value in entry.items()})
            found[run.strategy, run.batch_size, run.seed] = run
    return found


def _append(runs: Path, key: str, found: Sequence[Run]) -> None:
    runs.parent.mkdir(parents=True, exist_ok=True)
    torn = runs.exists() and runs.stat().st_size and not runs.read_bytes().endswith(b"\n")
    with runs.open("a", encoding="utf-8") as file:
        lines = "".join(json.dumps({"key": key, **asdict(run)}) + "\n" for run in found)
        file.write(("\n" if torn else "") + lines)
        file.flush()
        os.fsync(file.fileno())


def _frozen(value: Any) -> Any:
    """Lists of JSON as the tuples they were."""
    if isinstance(value, dict):
        return {name: tuple(values) for name, values in value.items()}
    return tuple(value) if isinstance(value, list) else value
