"""Rounds: every training of a running project, as it was judged on the frozen validation split.

The shelf of models (see `publish`) keeps what passed the gate, and the gate lets only improvements pass:
a curve through those alone falls whatever happens. So every round, refused ones too, is one line of
``rounds.jsonl`` on the shelf, with the loss of each validation image, which pairs two rounds image by
image. The line holds numbers only: patients are counted from 0, and no image is named.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dcaf_monai.cohort import Case, Cohort, cases_sha256
from dcaf_monai.image import ImageError
from dcaf_monai.model import VERSION, Model, describe_model, load_model
from dcaf_monai.predict import Predictor
from dcaf_monai.publish import shelf

FILE = "rounds.jsonl"
_SMALLEST = float(np.finfo(np.float64).tiny)


class Figure(BaseModel):
    """A figure with its 95 % interval over patients; None where it does not exist."""

    model_config = ConfigDict(frozen=True)
    value: float | None = None
    low: float | None = None
    high: float | None = None


class Round(BaseModel):
    """One training and what the validation split said of it.

    Args:
        version: Of its model.
        labels: Training labels it learnt from.
        published: Whether it passed the gate; None when nobody knows.
        mode: ``frozen`` or ``full``.
        validation_sha256: Digest of the validation rows of its cohort.
        nll: Negative log-likelihood, nats.
        auroc: Macro mean.
        judged_sha256: Digest of the validation cases that could be read; empty when losses are not kept.
        losses: Negative log-likelihood of each of them, nats, in the order of their names.
        patients: Patient of each, counted from 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: str = Field(max_length=64)
    labels: int = Field(ge=0)
    published: bool | None = None
    mode: str = ""
    validation_sha256: str = ""
    nll: Figure
    auroc: Figure = Figure()
    judged_sha256: str = ""
    losses: tuple[float, ...] = ()
    patients: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _pairs(self) -> Round:
        if len(self.losses) != len(self.patients) or not all(map(math.isfinite, self.losses)):
            raise ValueError(f"losses, patients: need finite losses, each with its patient, got "
                             f"{len(self.losses)} and {len(self.patients)}")
        return self

    def pairs_with(self, other: Round) -> bool:
        """Whether both keep the losses of the very same images."""
        return bool(self.losses) and self.judged_sha256 == other.judged_sha256 and \
            self.patients == other.patients


def rounds(path: Path) -> list[Round]:
    """Every known round of a published file, oldest first: those recorded, and the shelf's others.

    A line that is no round, as a crash may leave one, is passed over.

    Raises:
        ModelError: When a model on the shelf cannot be read.
    """
    folder = shelf(Path(path))
    found: dict[str, Round] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if VERSION.fullmatch(file.stem):
            status = file.stat()
            kept = _on_shelf(file, status.st_mtime_ns, status.st_size)
            if kept is not None:
                found[kept.version] = kept
    for line in _lines(folder / FILE):
        try:
            recorded = Round.model_validate_json(line)
        except ValidationError:
            continue
        known = found.get(recorded.version)  # what is measured again later does not know the verdict
        published = recorded.published if recorded.published is not None or not known else known.published
        found[recorded.version] = recorded.model_copy(update={"published": published})
    return [found[version] for version in sorted(found)]


def record_round(path: Path, model: Model, *, probs: np.ndarray, cases: Sequence[Case],
                 published: bool | None = None) -> Round:
    """Add a round to the record of a published file; on the disk when this returns.

    Args:
        path: The published file, whether this round was published to it or refused.
        model: What the round made, with its provenance.
        probs: ``(cases, classes)``, its calibrated answers.
        cases: The validation cases they belong to.
        published: What the gate said.

    Raises:
        ValueError: When the answers do not fit the cases.
    """
    task = model.task
    if np.shape(probs) != (len(cases), len(task.classes)) or not len(cases):
        raise ValueError(f"probs: need ({len(cases)}, {len(task.classes)}) with at least one case, "
                         f"got {np.shape(probs)}.")
    number: dict[str, int] = {}
    losses, patients = [], []
    for index in sorted(range(len(cases)), key=lambda index: (cases[index].uid, cases[index].frame or 0)):
        chosen = float(probs[index, task.class_index(cases[index].label)])
        losses.append(-math.log(chosen or _SMALLEST))
        patients.append(number.setdefault(cases[index].group, len(number)))
    made = _judged(model.version, model.provenance).model_copy(update={
        "published": published, "judged_sha256": cases_sha256(cases), "losses": tuple(losses),
        "patients": tuple(patients)})
    if made.nll.value is None:
        made = made.model_copy(update={"nll": Figure(value=float(np.mean(losses)))})
    folder = shelf(Path(path))
    folder.mkdir(parents=True, exist_ok=True)
    # a line that a crash left without its end must not swallow this one
    line = ("" if _ends(folder / FILE) else "\n") + made.model_dump_json() + "\n"
    with (folder / FILE).open("ab") as file:
        file.write(line.encode("ascii"))
        file.flush()
        os.fsync(file.fileno())
    return made


def measure_rounds(path: Path, cohort: Cohort, *, notify: Callable[[int, int], None] | None = None) -> int:
    """Record the losses of every model on the shelf that was judged on this cohort's validation split.

    Args:
        path: The published file.
        cohort: Whose validation split judges.
        notify: Called with (done, total) models.

    Returns:
        How many models were measured; those whose losses are kept already are not measured again.

    Raises:
        ModelError: When a model cannot be read.
    """
    wanted = [entry for entry in rounds(path)
              if not entry.losses and entry.validation_sha256 == cohort.validation_sha256]
    cases = cohort.split("val")
    for done, entry in enumerate(wanted, start=1):
        model = load_model(shelf(Path(path)) / f"{entry.version}.safetensors")
        answers = Predictor(model).predict_files([(case.uid, case.path, case.frame) for case in cases])
        read = [(case, answer.probs) for case, (_, answer) in zip(cases, answers, strict=True)
                if not isinstance(answer, ImageError)]
        if read:
            record_round(path, model, probs=np.stack([probs for _, probs in read]),
                         cases=[case for case, _ in read], published=entry.published)
        if notify:
            notify(done, len(wanted))
    return len(wanted)


@lru_cache(maxsize=1024)
def _on_shelf(file: Path, mtime_ns: int, size: int) -> Round | None:
    """What a kept model says of its round; read once for each state of the file."""
    document = describe_model(file)
    judged = _judged(document["version"], document["provenance"])
    return judged.model_copy(update={"published": True}) if judged.nll.value is not None else None


def _judged(version: str, provenance: Mapping[str, Any]) -> Round:
    figures = provenance.get("validation") or {}
    nll = figures.get("nll") or {"value": provenance.get("validation_nll")}
    return Round(version=version, labels=sum((provenance.get("counts") or {}).get("train", {}).values()),
                 mode=provenance.get("mode", ""), nll=Figure.model_validate(nll),
                 validation_sha256=provenance.get("validation_sha256", ""),
                 auroc=Figure.model_validate(figures.get("auroc") or {}))


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="ascii", errors="replace")
        return [line for line in text.splitlines() if line.strip()]
    except FileNotFoundError:
        return []


def _ends(file: Path) -> bool:
    """Whether a file is missing, empty or ends with a whole line."""
    try:
        with file.open("rb") as opened:
            opened.seek(-1, os.SEEK_END)
            return opened.read(1) == b"\n"
    except OSError:
        return True
