"""The one figure people quote, and when it may not stand alone.

Near-perfect figures on radiographs have nearly always been faults of the data: sources that coincide with the
classes, marks burned into the films, patients in two splits (DeGrave et al. 2021, Roberts et al. 2021). So an
AUROC above `LIMIT` is told only beside an audit's verdict on the same data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcaf_monai.cohort import Cohort

LIMIT = 0.995


def audit_verdict(audit: Mapping[str, Any], cohort: Cohort) -> dict[str, Any]:
    """What an audit says of exactly these data.

    Returns:
        ``verdict`` (``pass``, ``look`` or ``alarm``), ``data_sha256``, ``items`` that did not pass (``name``,
        ``verdict``, ``sentence``) and how many ``passed``.

    Args:
        audit: The content of ``audit.json``.
        cohort: The data.

    Raises:
        ValueError: When the audit looked at another task or at other data.
    """
    tasks = audit.get("tasks") or {}
    found = tasks.get(cohort.task.name)
    if found is None:
        raise ValueError(f"audit: need one of task {cohort.task.name}, got one of "
                         f"{', '.join(tasks) or 'none'}. Run dcaf audit on this data.")
    if found["data_sha256"] != cohort.sha256:
        raise ValueError("audit: need one of the data that are evaluated, got one of others. "
                         "Run dcaf audit on this table.")
    items = [item for item in audit["items"] if item["task"] in ("", cohort.task.name)]
    return {"verdict": found["verdict"], "data_sha256": cohort.sha256,
            "items": [{name: item[name] for name in ("name", "verdict", "sentence")}
                      for item in items if item["verdict"] != "pass"],
            "passed": sum(item["verdict"] == "pass" for item in items)}


def headline(areas: Mapping[str, Mapping[str, float | None]],
             audit: Mapping[str, Any] | None) -> dict[str, Any]:
    """The macro AUROC of every model, or why it is withheld.

    Args:
        areas: By model the AUROC as value, low and high.
        audit: From `audit_verdict`; None without an audit.

    Returns:
        ``auroc`` (None when withheld), ``audit`` (the verdict) and ``withheld`` (a sentence, or None).
    """
    high = [name for name, area in areas.items() if is_too_good(area["value"])]
    if high and audit is None:
        return {"auroc": None, "audit": None,
                "withheld": f"AUROC withheld: that of {', '.join(high)} is above {LIMIT}, which on such "
                "images is more often a fault of the data than a result. Run dcaf audit on this data and "
                "give its verdict with --audit."}
    return {"auroc": {name: dict(area) for name, area in areas.items()},
            "audit": None if audit is None else audit["verdict"], "withheld": None}


def is_too_good(area: float | None) -> bool:
    """Whether an AUROC is one that needs an audit beside it."""
    return area is not None and area > LIMIT


def without_areas(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of one model with every AUROC above `LIMIT` taken out, of single classes too."""
    none = {"value": None, "low": None, "high": None}
    return {name: without_areas(value) if name != "auroc" and isinstance(value, Mapping)
            else none if name == "auroc" and is_too_good(value["value"]) else value
            for name, value in figures.items()}


def labels_of(paths: Sequence[Path]) -> list[str]:
    """A different label for each model file: its stem, its folder before it where stems are equal.

    Raises:
        ValueError: For one file named twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("models: need different files, got one twice.")
    stems = [path.stem for path in paths]
    labels = [stem if stems.count(stem) == 1 else f"{path.resolve().parent.name}/{stem}"
              for stem, path in zip(stems, paths, strict=True)]
    return [label if labels.count(label) == 1 else f"{label} ({number})"
            for number, label in enumerate(labels, start=1)]
