"""What each part of the network is worth: variants on the same cached features, judged on the test split.

Trunks are frozen, so their features are computed once for all variants and seeds. Every variant is trained
by `fit` with the same recipe; the test split is looked at after the last epoch and chooses nothing.
Differences are paired: the same seeds, and the same patients drawn for both. A run that stands is not
repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcaf_monai import metrics, rivals, selective
from dcaf_monai.appraise import Source, mean_probs, pooled_vectors
from dcaf_monai.calibration import fit_temperature
from dcaf_monai.cohort import Cohort
from dcaf_monai.compare import spread
from dcaf_monai.conformal import ALPHAS, coverage, fit_conformal, validation_roles
from dcaf_monai.features import feature_cache, input_cache, trunk_sha256
from dcaf_monai.model import Model, ModelError, load_model
from dcaf_monai.network import DualCrossAttentionFusion, NetworkConfig
from dcaf_monai.processes import peak_memory_mib
from dcaf_monai.train import FROZEN_POOL, Notify, Recipe, TrainError, fit, origin_of
from dcaf_monai.transforms import Preprocessing
from dcaf_monai.uncertainty import summarize

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "dcaf": {}, "first_only": {"branches": "first"}, "second_only": {"branches": "second"},
    "concat_only": {"attention": False}, "no_gate": {"gate": False}, "no_refine": {"refine": False}}
"""Name to what it changes in `network.NetworkConfig`."""
AVERAGE = "logit_average"
"""Mean of the logits of both single branches of one seed; needs no training of its own."""
WAYS = ("softmax", "softmax_temperature", "head_dropout", "head_dropout_temperature",
        "head_dropout_20_temperature", "head_dropout_200_temperature", "full_dropout_temperature",
        "laplace_temperature", "head_ensemble_temperature")
"""Ways to be unsure that are compared on the trained ``dcaf`` networks; a number is one of dropout masks."""
FULL_SAMPLES = 20
"""Samples with dropout in the fusion, each of which costs a fusion."""
SHOWN = ("auroc", "aupr", "accuracy", "balanced_accuracy", "nll", "brier", "ece", "adaptive_ece", "aurc",
         "augrc", "risk_at_80_coverage", "coverage_at_5_risk", "failure_auroc")


@dataclass(frozen=True)
class Split:
    """Where the cases of one split stand among the cached ones.

    Args:
        cases: Case numbers ``(cases,)``.
        labels: Class indices ``(cases,)``.
        groups: Patient of each.
    """

    cases: np.ndarray
    labels: np.ndarray
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One trained network and what it says, before any temperature.

    Args:
        model: As its file holds it.
        val: Sampled logits ``(samples, cases, classes)`` of the validation split.
        test: Of the test split.
        pooled: Pooled vectors of both splits; empty where the logits are of several networks.
    """

    model: Model
    val: torch.Tensor
    test: torch.Tensor
    pooled: tuple[torch.Tensor, ...] = ()


def ablate(cohort: Cohort, *, folder: Path, cache: Path, backbones: tuple[str, str],
           weights: str | tuple[str | Path, str | Path], variants: Sequence[str] = tuple(VARIANTS),
           seeds: Sequence[int] = (0, 1, 2), epochs: int = 8, batch_size: int = 32,
           shape: Mapping[str, Any] | None = None, preprocessing: Preprocessing | None = None,
           resamples: int = 1000, progress: Notify | None = None) -> dict[str, Any]:
    """Train every variant with every seed, and put what they reach on the test split side by side.

    Args:
        cohort: With a test split.
        folder: Of the models; one that stands there and was trained alike is used as it is.
        cache: Folder of inputs and features, shared by all.
        backbones: Two timm names.
        weights: Of the trunks, as in `fit`.
        variants: Some of `VARIANTS`; ``dcaf`` is what the others are compared with.
        seeds: Of the trainings.
        epochs: Of every training.
        batch_size: Of every training.
        shape: Other fields of `NetworkConfig`, for all.
        preprocessing: How an image becomes an input.
        resamples: Bootstrap draws.
        progress: Told (stage, done, total, note).

    Returns:
        Plain JSON values. ``variants``: name to ``figures`` (mean, sd, n over seeds; the names of
        `SHOWN`; None for one that some seed does not have, as failure AUROC without a failure),
        ``minutes``, ``best_epoch``; ``differences``: name to figure to ``{"value", "low", "high", "p",
        "p_holm"}``, dcaf minus the variant, mean over seeds, 95 % interval over patients and seeds, p of no
        difference from the same draws, alone and after Holm (1979) for all variants; ``ways``: way of being
        unsure to figures and conformal coverage; ``counts``, ``epochs``, ``seeds``, ``minutes`` of this call,
        ``peak_memory_mib``.

    Raises:
        ValueError: For an unknown variant, or no test case.
        TrainError: When a training fails, or a model of other settings stands in the folder.
    """
    unknown = sorted(set(variants) - set(VARIANTS))
    if unknown or "dcaf" not in variants or not cohort.split("test"):
        raise ValueError(f"variants: need dcaf and others of {', '.join(VARIANTS)}, and a test split with "
                         f"cases, got {', '.join(variants)} and {len(cohort.split('test'))} test cases.")
    started, folder = time.monotonic(), Path(folder)
    preprocessing = preprocessing or Preprocessing()
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    ways: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    table = _tabled(cohort, cache, preprocessing, resamples, progress)
    for seed in seeds:
        for name in variants:
            if progress:
                progress("ablate", sum(map(len, runs.values())), len(seeds) * len(variants),
                         f"{name}, seed {seed}")
            model = _trained(cohort, folder / f"{cohort.task.name}-{name}-{seed}.safetensors", seed=seed,
                             shape={**(shape or {}), **VARIANTS[name]}, cache=cache, backbones=backbones,
                             weights=weights, epochs=epochs, batch_size=batch_size,
                             preprocessing=preprocessing, progress=progress)
            runs[name].append(table.run(model))
            if name == "dcaf":
                for way, found in table.ways(runs[name][-1], seed).items():
                    ways[way].append(found)
    if {"first_only", "second_only"} <= set(variants):
        runs[AVERAGE] = [Run(one.model, (one.val + two.val) / 2, (one.test + two.test) / 2)
                         for one, two in zip(runs["first_only"], runs["second_only"], strict=True)]
    drawn = {name: [table.draws(table.probs(run)) for run in found] for name, found in runs.items()}
    return {
        "task": cohort.task.name, "counts": cohort.counts, "backbones": list(backbones), "epochs": epochs,
        "seeds": list(seeds), "weights": runs["dcaf"][0].model.provenance["weights"],
        "calibration_cases": table.calibration_cases, "cohort_sha256": cohort.sha256, "resamples": resamples,
        "variants": {name: {
            "figures": _spreads([{kind: float(each[kind][0]) for kind in SHOWN} for each in drawn[name]]),
            "minutes": [run.model.provenance["minutes"] for run in runs[name]],
            "best_epoch": [run.model.provenance["best_epoch"] for run in runs[name]]} for name in runs},
        "differences": _holm({name: table.difference(drawn["dcaf"], drawn[name])
                              for name in runs if name != "dcaf"}),
        "ways": {way: _spreads(found) for way, found in ways.items()},
        "minutes": round((time.monotonic() - started) / 60, 1),
        "peak_memory_mib": round(peak_memory_mib())}


@dataclass(frozen=True)
class _Table:
    """Cached features of validation and test, and the figures of answers about them."""

    val: Split
    test: Split
    train: Split
    features: Callable[[DualCrossAttentionFusion], Source]
    classes: tuple[str, ...]
    weights: np.ndarray

    @property
    def calibration_cases(self) -> dict[str, int]:
        """Of every class."""
        labels = self.val.labels[self.roles[1]]
        return {name: int((labels == column).sum()) for column, name in enumerate(self.classes)}

    def run(self, model: Model) -> Run:
        network = model.network
        source = self.features(network)
        both = tuple(pooled_vectors(network, source, split.cases) for split in (self.val, self.test))
        val, test = (rivals.head_dropout_logits(network.head, pooled, samples=model.samples, seed=model.seed)
                     for pooled in both)
        return Run(model, val, test, both)

    @cached_property
    def roles(self) -> tuple[np.ndarray, np.ndarray]:
        """Validation cases that choose, and those that calibrate: the ones of the trainings."""
        return validation_roles(self.val.groups, self.val.labels)

    def probs(self, run: Run) -> np.ndarray:
        """Test probabilities at the temperature of the half of validation that fits it."""
        return mean_probs(run.test, self._temperature(run.val))

    def _temperature(self, val: torch.Tensor) -> float:
        fits, _ = self.roles
        return fit_temperature(val[:, fits], torch.from_numpy(self.val.labels[fits]))

    def draws(self, probs: np.ndarray, uncertainty: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Every figure of `SHOWN` in every draw of patients, first the whole."""
        wrong = probs.argmax(1) != self.test.labels
        unsure = 1 - probs.max(1) if uncertainty is None else uncertainty
        whole, _ = metrics.figures(probs, self.test.labels, self.weights)
        return {**whole, **selective.figures(unsure, wrong, self.weights)}

    def difference(self, ours: Sequence[dict[str, np.ndarray]],
                   others: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
        """Mean over seeds of ours minus theirs; every draw takes patients and seeds anew, for both alike."""
        patients, seeds = len(set(self.test.groups)), len(ours)
        draws = self.weights.shape[0]
        taken = np.random.default_rng(0).integers(seeds, size=(draws, seeds))
        taken[0] = np.arange(seeds)   # the whole
        found = {}
        for kind in SHOWN:
            each = np.stack([a[kind] - b[kind] for a, b in zip(ours, others, strict=True)])
            drawn = each[taken, np.arange(draws)[:, None]].mean(1)
            found[kind] = {**metrics.interval(drawn, patients), "p": _two_sided(drawn[1:])}
        return found

    def ways(self, run: Run, seed: int) -> dict[str, dict[str, Any]]:
        """Figures of every way of being unsure, on the features of one trained network."""
        model, (val, test) = run.model, run.pooled
        network, head = model.network, model.network.head
        source = self.features(network)
        train = pooled_vectors(network, source, self.train.cases)
        fits, _ = self.roles
        choosing = val[fits], torch.from_numpy(self.val.labels[fits])
        laplace = rivals.tune_laplace(head, train, choosing)
        plain = rivals.softmax_logits(head, val), rivals.softmax_logits(head, test)
        full = tuple(rivals.full_dropout_logits(network, source, split.cases, samples=FULL_SAMPLES,
                                                seed=model.seed) for split in (self.val, self.test))
        ensemble = rivals.head_ensemble_logits(head, (train, torch.from_numpy(self.train.labels)), choosing,
                                               (val, test), seed=seed)

        def masked(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
            return (rivals.head_dropout_logits(head, val, samples=samples, seed=model.seed),
                    rivals.head_dropout_logits(head, test, samples=samples, seed=model.seed))

        found: dict[str, tuple[torch.Tensor, torch.Tensor, bool]] = {
            "softmax": (*plain, False), "softmax_temperature": (*plain, True),
            "head_dropout": (run.val, run.test, False),
            "head_dropout_temperature": (run.val, run.test, True),
            "head_dropout_20_temperature": (*masked(20), True),
            "head_dropout_200_temperature": (*masked(200), True),
            "full_dropout_temperature": (full[0], full[1], True),
            "laplace_temperature": (laplace.logits(val), laplace.logits(test), True),
            "head_ensemble_temperature": (ensemble[0], ensemble[1], True)}
        return {way: self._figures(val_logits, test_logits, tempered)
                for way, (val_logits, test_logits, tempered) in found.items()}

    def _figures(self, val: torch.Tensor, test: torch.Tensor, tempered: bool) -> dict[str, Any]:
        temperature = self._temperature(val) if tempered else 1.0
        told = summarize(test, temperature)
        probs = told.probs.numpy()
        wrong = probs.argmax(1) != self.test.labels
        once = np.ones((1, len(wrong)))
        found: dict[str, Any] = {kind: float(values[0]) for kind, values in self.draws(probs).items()}
        scores = {"entropy": told.predictive_entropy, "mutual_information": told.mutual_information}
        for name, score in scores.items():
            # one sample has no mutual information, and rounding must not rank cases
            usable = len(test) > 1 or name == "entropy"
            found[f"failure_auroc_{name}"] = float(
                selective.figures(score.numpy(), wrong, once)["failure_auroc"][0]) if usable else None
        _, calibrates = self.roles
        groups = [self.val.groups[case] for case in calibrates]
        held = mean_probs(val, temperature)[calibrates]
        whole, _ = metrics.figures(held, self.val.labels[calibrates], np.ones((1, len(calibrates))))
        found["ece_held_out_validation"] = float(whole["ece"][0])
        found["ece_held_out_by_chance"] = metrics.calibration_error_by_chance(held.max(1))["value"]
        for alpha in ALPHAS:
            for conditional in (False, True):
                sets = fit_conformal(held, self.val.labels[calibrates], groups, self.classes, alpha=alpha,
                                     conditional=conditional)
                sized = coverage(sets.sets(probs), self.test.labels, self.classes, self.test.groups,
                                 resamples=2)
                kind = f"{'class' if conditional else 'marginal'}_{alpha}"
                found[f"coverage_{kind}"] = sized["coverage"]["value"]
                found[f"size_{kind}"] = sized["mean_size"]["value"]
                found[f"worst_class_{kind}"] = min(
                    each["coverage"]["value"] for each in sized["per_class"].values() if each["cases"])
                found |= {f"coverage_{kind}_{name}": each["coverage"]["value"]
                          for name, each in sized["per_class"].items() if each["cases"]}
        return found


def _tabled(cohort: Cohort, cache: Path, preprocessing: Preprocessing, resamples: int,
            progress: Notify | None) -> _Table:
    def told(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(stage, done, total, "") if progress else None

    inputs = input_cache(cohort.cases, preprocessing, cache, progress=told("read"))
    cached: dict[str, Source] = {}   # trunks without pretrained weights differ from seed to seed

    def features(network: DualCrossAttentionFusion) -> Source:
        trunks = trunk_sha256(network)
        if trunks not in cached:
            cached[trunks] = feature_cache(inputs, network, cache, progress=told("features")).features
        return cached[trunks]

    labels = np.array([cohort.task.class_index(case.label) for case in inputs.cases], np.int64)

    def split(name: str) -> Split:
        cases = np.flatnonzero([case.split == name for case in inputs.cases])
        return Split(cases, labels[cases], tuple(inputs.cases[case].group for case in cases))

    test = split("test")
    return _Table(split("val"), test, split("train"), features,
                  cohort.task.classes, metrics.group_weights(test.groups, resamples=resamples, seed=0))


def _trained(cohort: Cohort, out: Path, *, seed: int, shape: Mapping[str, Any], epochs: int, batch_size: int,
             backbones: tuple[str, str], weights: str | tuple[str | Path, str | Path],
             preprocessing: Preprocessing, **settings: Any) -> Model:
    """The model of this run, from its file when it stands there and was trained alike."""
    if not out.exists():
        return fit(cohort, out=out, mode="frozen", seed=seed, shape=shape, epochs=epochs,
                   batch_size=batch_size, backbones=backbones, weights=weights, preprocessing=preprocessing,
                   **settings).model
    try:
        model = load_model(out)
    except ModelError as error:
        raise TrainError(f"{error} Or remove {out.name}.") from error
    facts = model.provenance
    config = NetworkConfig.model_validate({"classes": len(cohort.task.classes), "backbones": backbones,
                                           "pool": FROZEN_POOL, **shape})
    recipe = Recipe(epochs=epochs, batch_size=batch_size)
    asked = {"data": cohort.sha256, "seed": seed, "mode": "frozen", "weights": origin_of(weights),
             "recipe": recipe.model_dump(mode="json"), "network": config, "preprocessing": preprocessing}
    stands = {"data": facts.get("cohort_sha256"), "network": model.network.config,
              "preprocessing": model.preprocessing,
              **{key: facts.get(key) for key in ("seed", "mode", "weights", "recipe")}}
    other = [key for key in asked if asked[key] != stands[key]]
    if other:
        raise TrainError(f"{out.name}: need a model of these data and settings, got one of other "
                         f"{', '.join(other)}. Choose another folder.")
    return model


def _two_sided(drawn: np.ndarray) -> float | None:
    """p of no difference: twice the share of draws on the rarer side of zero; never 0."""
    known = drawn[np.isfinite(drawn)]
    rarer = min((known <= 0).sum(), (known >= 0).sum())
    return min(1.0, 2 * float(rarer + 1) / (len(known) + 1)) if len(known) else None


def _holm(differences: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Adds ``p_holm`` to every figure: its p among those of all variants."""
    for kind in SHOWN:
        known = sorted((found[kind] for found in differences.values() if found[kind]["p"] is not None),
                       key=lambda figure: figure["p"])
        least = 0.0
        for place, figure in enumerate(known):
            least = max(least, min(1.0, (len(known) - place) * figure["p"]))
            figure["p_holm"] = least
        for found in differences.values():
            found[kind].setdefault("p_holm", None)
    return differences


def _spreads(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sd over seeds of each figure that exists for every seed."""
    columns = {kind: [value for each in found if (value := each[kind]) is not None and np.isfinite(value)]
               for kind in found[0]}
    return {kind: spread(values) if len(values) == len(found) else None for kind, values in columns.items()}
