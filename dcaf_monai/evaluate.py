"""`evaluate`: how good a model is, how sure it should be, and when not to believe it, as one document.

The document holds plain JSON values and names no file and no patient. What is told of each model is in
`evaluation_parts`; here are the models beside each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dcaf_monai import conformal, faithful
from dcaf_monai.answers import File, answer_cases, common_images
from dcaf_monai.cohort import Case, Cohort
from dcaf_monai.compare import paired, spread
from dcaf_monai.conformal import digests
from dcaf_monai.evaluation_parts import (
    CALIBRATION,
    SHOWN,
    Examined,
    Notify,
    Settings,
    conformal_tables,
    drift_reference,
    explained,
    outside_table,
    own_figures,
    told,
)
from dcaf_monai.headline import audit_verdict, headline
from dcaf_monai.model import Model
from dcaf_monai.predict import Predictor

__all__ = ["Evaluation", "Examined", "Settings", "evaluate", "examine"]

SCHEMA = "dcaf-evaluation/1"
SUMMARY = ("auroc", "aupr", "accuracy", "balanced_accuracy", "f1", *CALIBRATION)
"""Figures of the whole that every table shows, in this order."""


@dataclass(frozen=True)
class Evaluation:
    """The outcome.

    Args:
        document: The content of ``evaluation.json``.
        examined: Models with their answers, as many and in the order of ``document["models"]``.
        cases: Of the reported split.
        faithfulness: By label what the check of the explanations measured.
        sets: By label the conformal sets that ``cases.csv`` shows: the model's own, else `SHOWN`.
    """

    document: Mapping[str, Any]
    examined: tuple[Examined, ...] = field(repr=False)
    cases: tuple[Case, ...] = field(repr=False)
    faithfulness: Mapping[str, faithful.Faithfulness] = field(default_factory=dict, repr=False)
    sets: Mapping[str, conformal.ConformalSets] = field(default_factory=dict, repr=False)


def examine(predictor: Predictor, cohort: Cohort, *, label: str, split: str = "test",
            validation: bool = True, notify: Notify | None = None) -> Examined:
    """Ask a model about a split, and about the validation split for what is fitted there.

    Args:
        predictor: With the model.
        cohort: The data.
        label: What tables call the model.
        split: Which split is reported.
        validation: Whether the validation split is needed.
        notify: Told (what, done, total).

    Raises:
        ValueError: For a split without a readable case, a model of other classes, or validation or test
            patients whom the model was trained on.
    """
    if not cohort.split(split):
        raise ValueError(f"--split: need a split with cases, got {split!r}, which has none.")
    if split != "train":
        _require_unmet(predictor.model, cohort, dict.fromkeys((split, "val")))
    test = answer_cases(predictor, cohort.split(split), cohort.task, progress=told(notify, label, split))
    held = None
    if validation and split != "val":
        held = answer_cases(predictor, cohort.split("val"), cohort.task, progress=told(notify, label, "val"))
    return Examined(label, predictor, test, held)


def _require_unmet(model: Model, cohort: Cohort, splits: Iterable[str]) -> None:
    """Refuse figures of patients whom the model learnt from."""
    met = set(model.provenance.get("training_patients", ()))
    for split in splits:
        patients = set(digests(case.group for case in cohort.split(split)))
        if known := len(patients & met):
            raise ValueError(f"{split} split: need patients whom the model was not trained on, got {known} "
                             f"of {len(patients)} whom it was. Give the table of the training's own split: "
                             "data-split.csv in the folder MODEL.training beside the model.")


def evaluate(examined: Sequence[Examined], cohort: Cohort, *, settings: Settings | None = None,
             outside: Mapping[str, Sequence[File]] | None = None, audit: Mapping[str, Any] | None = None,
             masks: Mapping[str, Path] | None = None, notify: Notify | None = None) -> Evaluation:
    """Every figure of every model.

    Args:
        examined: At least one, each with a label of its own; their answers are cut to the images all of
            them could read.
        cohort: The data.
        settings: By default `Settings`.
        outside: Pictures that are none of the task, by title.
        audit: The content of ``audit.json``.
        masks: Image name to a file with where heat should lie, such as the lungs (`pointing.mask_files`).
        notify: Told (what, done, total).

    Raises:
        ImageError: For a mask that does not fit its image.
        ValueError: For an audit of other data, a test patient on whom the model was fitted, or settings
            that do not fit.
    """
    settings = settings or Settings()
    if not examined or len({one.label for one in examined}) < len(examined):
        raise ValueError("models: need at least one, each with a label of its own, got "
                         f"{', '.join(one.label for one in examined) or 'none'}.")
    verdict = audit_verdict(audit, cohort) if audit else None
    cut = common_images([one.test for one in examined])
    examined = [replace(one, test=test) for one, test in zip(examined, cut, strict=True)]
    cases, first = cohort.split(settings.split), examined[0].test
    documents, checked, shown = [], {}, {}
    for one in examined:
        found = own_figures(one, settings)
        found["conformal"], fitted = conformal_tables(one, settings)
        own = one.model.conformal or fitted.get(SHOWN)
        if own is not None:
            shown[one.label] = own
        reference, found["drift_reference"] = drift_reference(one)
        found["outside"] = outside_table(one, cases, settings, outside or {}, reference, notify)
        found["explanations"] = None
        if settings.explain:
            checked[one.label] = explained(one, cases, settings, masks or {}, notify)
            found["explanations"] = checked[one.label].document(resamples=settings.resamples,
                                                                seed=settings.seed)
        documents.append(found)
    document = {
        "schema": SCHEMA, "task": cohort.task.name, "title": cohort.task.title,
        "classes": list(first.classes),
        "data": {"split": settings.split, "images": len(first), "patients": len(set(first.groups)),
                 "unreadable": len(cases) - len(first), "data_sha256": cohort.sha256,
                 "counts": {split: dict(counts) for split, counts in cohort.counts.items()},
                 "notices": [{"code": notice.code, "message": notice.message} for notice in cohort.notices]},
        "settings": {"prevalence": dict(settings.prevalence), "resamples": settings.resamples,
                     "seed": settings.seed, "shift_images": settings.shift_images},
        "audit": verdict,
        "headline": headline({one["label"]: one["discrimination"]["auroc"] for one in documents}, verdict),
        "models": documents, "comparisons": _comparisons(examined, settings),
        "seeds": _seeds(examined, documents)}
    return Evaluation(document, tuple(examined), cases, checked, shown)


def _comparisons(examined: Sequence[Examined], settings: Settings) -> list[dict[str, Any]]:
    """The first model against each of the others, on the same cases."""
    first = examined[0]
    return [{"a": first.label, "b": other.label,
             **paired(first.test.probs, other.test.probs, first.test.labels, first.test.groups,
                      first.test.classes, **settings.draws)} for other in examined[1:]]


def _configuration(model: Model) -> str:
    """Everything that decides a training but its seed, as text."""
    decides = [model.task.name, model.network.config.model_dump(mode="json"),
               model.preprocessing.model_dump(mode="json"), model.samples,
               *(model.provenance.get(name) for name in ("mode", "weights", "recipe", "cohort_sha256"))]
    return json.dumps(decides, sort_keys=True)


def _seeds(examined: Sequence[Examined], documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation of models that differ in their seed only."""
    alike: dict[str, list[int]] = {}
    for place, one in enumerate(examined):
        alike.setdefault(_configuration(one.model), []).append(place)
    found = []
    for places in alike.values():
        seeds = [int(examined[place].model.provenance.get("seed", 0)) for place in places]
        if len(places) < 2 or len(set(seeds)) < len(places):
            continue
        figures = {name: [documents[place]["discrimination"][name]["value"] for place in places]
                   for name in SUMMARY}
        found.append({"models": [examined[place].label for place in places], "seeds": seeds,
                      "figures": {name: spread(values) for name, values in figures.items()
                                  if None not in values}})
    return found
