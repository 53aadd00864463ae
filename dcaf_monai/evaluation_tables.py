"""An evaluation's numbers as tables: one row a figure, one row a case."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dcaf_monai.evaluate import Evaluation

PARTS = ("discrimination", "calibration", "selective", "conformal", "outside", "explanations", "cost")
"""Parts of a model's document that hold figures."""


def figure_rows(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every figure of every model as ``model, figure, value, low, high``; the figure is a dotted path."""
    for model in document["models"]:
        for part in PARTS:
            for path, found in _figures(model[part], part):
                yield {"model": model["label"], "figure": path, **found}
    for row in document["comparisons"]:
        for path, found in _figures(row["figures"], "difference"):
            yield {"model": f"{row['a']} minus {row['b']}", "figure": path, **found}


def _figures(found: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Figures below a value of the document: what has a value or a difference, and bare numbers."""
    if isinstance(found, Mapping):
        value = found.get("value", found.get("difference"))
        if "value" in found or "difference" in found:
            yield path, {"value": value, "low": found.get("low"), "high": found.get("high")}
            return
        for name, inside in found.items():
            if name not in ("diagrams", "curves", "thresholds", "notices"):
                yield from _figures(inside, f"{path}.{name}")
    elif isinstance(found, list) and path in _NAMES:
        for inside in found:
            yield from _figures({key: value for key, value in inside.items() if key not in _NAMES[path]},
                                f"{path}.{_name(inside, path)}")
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield path, {"value": found, "low": None, "high": None}


_NAMES: Mapping[str, tuple[str, ...]] = {
    "conformal.tables": ("method", "alpha", "conditional"),
    "outside": ("title", "kind", "family", "severity")}
"""Keys of the rows of a list that name the row."""


def _name(row: Mapping[str, Any], path: str) -> str:
    """Words that tell a row of a list from the others."""
    if path == "outside":
        return f"{row['kind'] or row['title']}" + (f"_{row['severity']}" if row["severity"] else "")
    return f"{row['method']}_{'per_class' if row['conditional'] else 'for_all'}_{row['alpha']:g}"


def case_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """One row a case and model: its number in the split, what was said, and how unsure; no name."""
    number = {case.uid: place for place, case in enumerate(evaluation.cases, start=1)}
    for one in evaluation.examined:
        test = one.test
        patient = {group: place for place, group in enumerate(dict.fromkeys(test.groups), start=1)}
        fitted = evaluation.sets.get(one.label)
        sets = None if fitted is None else fitted.sets(
            test.probs, uids=None if fitted.seed is None else test.uids)
        for place, uid in enumerate(test.uids):
            yield {"model": one.label, "case": number[uid], "patient": patient[test.groups[place]],
                   "label": test.classes[test.labels[place]],
                   "predicted": test.classes[test.predicted[place]],
                   **{f"prob_{name}": float(test.probs[place, column])
                      for column, name in enumerate(test.classes)},
                   **{f"uncalibrated_{name}": float(test.uncalibrated[place, column])
                      for column, name in enumerate(test.classes)},
                   **{name: float(getattr(test, name)[place])
                      for name in ("predictive_entropy", "expected_entropy", "mutual_information")},
                   "softmax_doubt": float(test.doubt["softmax"][place]),
                   "set": "" if sets is None else "|".join(
                       name for name, inside in zip(test.classes, sets[place], strict=True) if inside),
                   "notices": "|".join(test.notices[place])}


def to_csv(rows: Iterable[dict[str, Any]]) -> bytes:
    """Rows with one header, floats written so that they read back the same."""
    found = list(rows)
    columns = list(dict.fromkeys(name for row in found for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue().encode("utf-8")
