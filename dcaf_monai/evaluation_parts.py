"""The parts of an evaluation's document that are about one model.

Test cases choose nothing: cut-offs and temperature come with the model, thresholds of conformal sets from the
calibration half of the validation split, and no patient may have two of the three roles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcaf_monai import conformal, faithful, metrics
from dcaf_monai.answers import Answers, File, answer_files
from dcaf_monai.cohort import Case
from dcaf_monai.drift import FEWEST, Reference, fit_reference
from dcaf_monai.image import ImageError
from dcaf_monai.model import Model
from dcaf_monai.outside import MOST_IMAGES, SEVERITIES, outside_row, shifted_answers, spaced, warned_share
from dcaf_monai.pointing import masks_on_input, phantom_lesions
from dcaf_monai.predict import Predictor
from dcaf_monai.processes import peak_memory_mib
from dcaf_monai.selective import selective
from dcaf_monai.shifts import SHIFTS
from dcaf_monai.transforms import read_input
from dcaf_monai.uncertainty import dropout_masks, sample_logits

EXPLAINED = faithful.LIMIT
"""On so many images the explanations are checked."""
PHANTOMS = 24
"""Synthetic films with a known lesion, for the pointing game of chest tasks."""
METHODS: tuple[conformal.Method, ...] = ("lac", "aps", "raps")
SHOWN = ("lac", 0.1, True)
"""Method, alpha and whether per class, of the sets told of each case when the model brings none."""
CALIBRATION = ("nll", "brier", "ece", "adaptive_ece")
Notify = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What an evaluation is asked for.

    Args:
        split: Which split is reported.
        prevalence: Class to the share at which PPV and NPV are told; a class not named has the data's.
        resamples: Bootstrap draws.
        seed: Of the draws, the shifts and the choice of explained cases.
        shift_images: How many images each shift is tried on; 0 for no shifts.
        severities: Of the corruptions, 1 to 5.
        explain: On how many images the explanations are checked; 0 for none.
    """

    split: str = "test"
    prevalence: Mapping[str, float] = field(default_factory=dict)
    resamples: int = 1000
    seed: int = 0
    shift_images: int = MOST_IMAGES
    severities: tuple[int, ...] = SEVERITIES
    explain: int = EXPLAINED

    @property
    def draws(self) -> dict[str, Any]:
        """Arguments of every bootstrap."""
        return {"resamples": self.resamples, "seed": self.seed}


@dataclass(frozen=True)
class Examined:
    """One model and its answers.

    Args:
        label: What tables and figures call it.
        predictor: With the model.
        test: Answers to the split that is reported.
        validation: Answers to the validation split; None when that is the reported one.
    """

    label: str
    predictor: Predictor = field(repr=False)
    test: Answers
    validation: Answers | None

    @property
    def model(self) -> Model:
        """The model."""
        return self.predictor.model


def told(notify: Notify | None, label: str, what: str) -> Callable[[int, int], None]:
    """A callback ``(done, total)`` that names the model and the work."""
    return lambda done, total: notify(f"{label}: {what}", done, total) if notify else None


def own_figures(one: Examined, settings: Settings) -> dict[str, Any]:
    """What the answers alone say: discrimination, calibration, selective prediction, cost; and the model."""
    test, model = one.test, one.model
    discrimination = metrics.report(
        test.probs, test.labels, test.groups, test.classes, cutoffs=one.predictor.cutoffs,
        prevalence=settings.prevalence, **settings.draws)
    return {
        "label": one.label, "name": model.name, "version": model.version, "sha256": model.sha256,
        "network": model.network.config.model_dump(mode="json"),
        "preprocessing": model.preprocessing.model_dump(mode="json"),
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        "samples": model.samples, "masks_seed": model.seed, "temperature": model.temperature,
        "provenance": {name: value for name, value in model.provenance.items()
                       if name != "training_patients"},
        "discrimination": discrimination, "calibration": _calibration(test, discrimination, settings),
        "selective": selective(test.labels, test.predicted, test.doubt, test.groups, **settings.draws),
        "warned": warned_share(test), "cost": cost(one)}


def _calibration(test: Answers, after: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Proper scores and calibration errors before and after the temperature, and without dropout.

    ``after`` are the figures of the answers as they are, which need not be drawn again.
    """
    ways = {"before": test.uncalibrated, "without_dropout": test.plain}
    told = {way: metrics.report(probs, test.labels, test.groups, test.classes, **settings.draws)
            for way, probs in ways.items()}
    found: dict[str, Any] = {
        way: {**{name: figures[name] for name in (*CALIBRATION, "accuracy", "auroc")},
              "ece_by_chance": metrics.calibration_error_by_chance(probs.max(1), seed=settings.seed)}
        for way, figures, probs in (("before", told["before"], test.uncalibrated),
                                    ("after", after, test.probs),
                                    ("without_dropout", told["without_dropout"], test.plain))}
    return {**found, "diagrams": {"before": _diagram(test.uncalibrated, test.labels),
                                  "after": _diagram(test.probs, test.labels)}}


def _diagram(probs: np.ndarray, labels: np.ndarray) -> dict[str, list[float | None]]:
    found = metrics.reliability(probs, labels)
    return {name: [None if np.isnan(value) else float(value) for value in getattr(found, name)]
            for name in ("edges", "confidence", "accuracy", "count")}


def conformal_tables(one: Examined, settings: Settings) -> tuple[
        dict[str, Any], dict[tuple[str, float, bool], conformal.ConformalSets]]:
    """Coverage of every method, its thresholds from the calibration cases of the validation split.

    Returns:
        The part of the document, and the fitted sets by method, alpha and whether per class.

    Raises:
        ValueError: When a test patient has another role.
    """
    test, held, own = one.test, one.validation, one.model.conformal
    if held is None:
        return {"roles": None, "calibration_cases": {}, "tables": [], "notices": []}, {}
    known: dict[str, Sequence[str]] = {}
    if own:
        known = {str(role): patients for role, patients in own.roles.items()}
    shared: int = sum(conformal.overlap_with_roles(known, test.groups).values())
    if shared:
        raise ValueError("roles: need test patients on whom nothing of the model was fitted, got "
                         f"{shared} who served to fit or calibrate it. Evaluate on other patients.")
    fit, calibrate = _roles(one, held)
    fitted, calibrated = held.take(fit), held.take(calibrate)
    conformal.require_disjoint(fitted.groups, calibrated.groups, test.groups)
    tables: list[dict[str, Any]] = []
    notices: dict[str, None] = {}
    if own is None:
        notices["Roles: the model does not say which patients its temperature was fitted on, so some of them "
                "may be among the calibration cases. Train it again."] = None
    kept: dict[tuple[str, float, bool], conformal.ConformalSets] = {}
    for alpha in conformal.ALPHAS:
        for method in METHODS:
            for conditional in (False, True):
                sets = conformal.fit_conformal(
                    calibrated.probs, calibrated.labels, calibrated.groups, test.classes, method=method,
                    alpha=alpha, conditional=conditional, fit_groups=fitted.groups)
                kept[method, alpha, conditional] = sets
                told = conformal.coverage(sets.sets(test.probs), test.labels, test.classes, test.groups,
                                          **settings.draws)
                tables.append({"method": method, "alpha": alpha, "conditional": conditional,
                               "thresholds": dict(sets.thresholds), **told})
                notices |= dict.fromkeys(notice.message for notice in sets.notices())
    return {"roles": {"fit": len(fit), "calibrate": len(calibrate), "test": len(test)},
            "calibration_cases": {name: int((calibrated.labels == column).sum())
                                  for column, name in enumerate(test.classes)},
            "tables": tables, "notices": list(notices)}, kept


def _roles(one: Examined, held: Answers) -> tuple[np.ndarray, np.ndarray]:
    """Validation cases that fit the temperature, and others: as the model says, else as training splits."""
    own = one.model.conformal
    known = set(own.roles.get("fit", ())) if own else set()
    fits = np.array([conformal.digests([group])[0] in known for group in held.groups])
    if fits.any() and not fits.all():
        return np.flatnonzero(fits), np.flatnonzero(~fits)
    return conformal.validation_roles(held.groups, held.labels)


def outside_table(one: Examined, cases: Sequence[Case], settings: Settings,
                  outside: Mapping[str, Sequence[File]], reference: Reference | None,
                  notify: Notify | None) -> list[dict[str, Any]]:
    """Pictures that do not belong: other data first, then every shift; ``reference`` is of their features."""
    rows = []
    for title, files in outside.items():
        other = answer_files(one.predictor, spaced(files, MOST_IMAGES),
                             progress=told(notify, one.label, title))
        rows.append(outside_row(title, one.test, other, reference=reference, **settings.draws))
    if settings.shift_images:
        for kind, severity, changed in shifted_answers(
                one.predictor, cases, most=settings.shift_images, severities=settings.severities,
                seed=settings.seed, progress=told(notify, one.label, "shifts")):
            shift = SHIFTS[kind]
            rows.append(outside_row(shift.title, one.test, changed, family=shift.family, kind=kind,
                                    severity=severity, reference=reference, **settings.draws))
    return rows


def drift_reference(one: Examined) -> tuple[Reference | None, str]:
    """What ordinary features look like, and where that comes from: ``model``, ``validation`` or ``none``.

    A model without a reference of its own is given one of the validation split, which it was tuned on but
    not trained on; that needs `drift.FEWEST` cases in the fit half.
    """
    own, held = one.model.drift, one.validation
    if own is not None:
        return own, "model"
    if held is None or len(set(held.groups)) < 2:
        return None, "none"
    fit, others = _roles(one, held)
    if len(fit) < FEWEST:
        return None, "none"
    return fit_reference(held.pooled[fit], held.pooled[others]), "validation"


def explained(one: Examined, cases: Sequence[Case], settings: Settings, masks: Mapping[str, Path],
              notify: Notify | None) -> faithful.Faithfulness:
    """The check of the explanations on evenly spaced cases of the split, those with a mask first."""
    chosen = spaced([case for case in cases if case.uid in masks], settings.explain)
    chosen += spaced([case for case in cases if case.uid not in masks], settings.explain - len(chosen))
    inputs, groups, uids, places = [], [], [], []
    for case in chosen:
        try:
            image, tensor, placement = read_input(case.path, one.model.preprocessing, uid=case.uid,
                                                  frame=case.frame)
        except ImageError:
            continue
        inputs.append(tensor)
        groups.append(case.group)
        uids.append(case.uid)
        places.append((placement, image.geometry))
    task, lesions = one.model.task, None
    if "CHEST" in task.body_parts and "normal" in task.classes:  # what a phantom can show
        ill = next(column for column, name in enumerate(task.classes) if name != "normal")
        lesions = phantom_lesions(one.model.preprocessing, target=ill, count=PHANTOMS, seed=settings.seed)
    return faithful.check_explanations(
        one.model.network, torch.stack(inputs), groups=groups, temperature=one.model.temperature,
        masks=masks_on_input(masks, uids, places) if masks else None,
        lesions=lesions, limit=settings.explain, seed=settings.seed,
        progress=lambda stage, done, total: told(notify, one.label, stage)(done, total))


def cost(one: Examined) -> dict[str, float | None]:
    """Time from file to answer, how much of it the sampled head takes, and the process's memory."""
    model, pooled = one.model, torch.from_numpy(one.test.pooled)
    head, batch = model.network.head, one.predictor.batch_size
    masks = dropout_masks(head, samples=model.samples, seed=model.seed)
    with torch.inference_mode():
        pooled = pooled.to(next(head.parameters()).device)
        sample_logits(head, pooled[:1], masks)  # whatever is set up on first use
        started = time.perf_counter()
        for start in range(0, len(pooled), batch):
            sample_logits(head, pooled[start:start + batch], masks)
        seconds = time.perf_counter() - started
    memory = peak_memory_mib()
    return {"ms_per_image": 1000 * one.test.seconds / (len(one.test) + len(one.test.refused)),
            "head_ms_per_image": 1000 * seconds / len(one.test),
            "peak_memory_mib": None if math.isnan(memory) else memory}
