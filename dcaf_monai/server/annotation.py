"""`Annotation`: what one reader said about one image, at one time. Valid at birth, never changed.

The smallest one accepted is ``{"label", "reader", "comment"}``; the store adds the time, the model
and the prediction. Positions are in pixels of the stored image, ``(row, column)``, 0 at the centre
of the first pixel.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from dcaf_monai.tasks import NOT_A_CLASS, Task

SHOWN_LIMIT = 4096
"""Longest ``shown`` document, in characters of JSON."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")


def _one_line(text: str) -> str:
    if _CONTROL.search(text) or text != text.strip():
        raise ValueError("need text without control characters or outer spaces")
    return text


def _lines(text: str) -> str:
    if _CONTROL_BUT_LINES.search(text):
        raise ValueError("need text without control characters")
    return text


def _not_bool(value: Any) -> Any:
    """Python counts True as 1; as a confidence it is a mistake."""
    if isinstance(value, bool):
        raise ValueError("need a number")
    return value


Reader = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_one_line)]
"""Who reads: 1-64 characters, no control characters."""
Comment = Annotated[str, Field(max_length=4000), AfterValidator(_lines)]
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Pixel = Annotated[Number, Field(ge=-0.5, le=1e6)]


class Annotation(BaseModel):
    """One reader's answer for one image.

    Args:
        label: A class of the task, or ``uncertain`` or ``not_assessable``.
        reader: Who answered.
        comment: Free text, at most 4000 characters.
        confidence: The reader's own, 0 to 1.
        seconds: Time spent on the image.
        point: ``(row, column)`` that justified the answer, pixels.
        box: ``(row0, column0, row1, column1)`` that justified the answer, pixels; row1 > row0,
            column1 > column0.
        shown: What prediction or overlay the reader had seen, a small JSON object.
        blind: True when the reader saw no prediction before answering.
        role: ``adjudication`` settles a disagreement between reads.
        key: The client's own number of this submission; the same key is never stored twice.
        created: When it was stored, UTC; set by the store.
        model_version: Model whose prediction the store held at that time; set by the store.
        prediction: ``{label, score, predictive_entropy}`` of that prediction; set by the store.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=4000)
    label: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")
    reader: Reader
    comment: Comment = ""
    confidence: Annotated[Number, Field(ge=0, le=1)] | None = None
    seconds: Annotated[Number, Field(ge=0, le=1e6)] | None = None
    point: tuple[Pixel, Pixel] | None = None
    box: tuple[Pixel, Pixel, Pixel, Pixel] | None = None
    shown: dict[str, Any] | None = None
    blind: bool = False
    role: Literal["read", "adjudication"] = "read"
    key: uuid.UUID = Field(default_factory=uuid.uuid4)
    created: datetime | None = None
    model_version: str | None = Field(default=None, max_length=128)
    prediction: dict[str, Any] | None = None

    @field_validator("shown", "prediction")
    @classmethod
    def _is_small_json(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else plain_json(value, limit=SHOWN_LIMIT)

    @field_validator("created")
    @classmethod
    def _has_a_zone(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("need a time with its zone")
        return value if value is None else value.astimezone(timezone.utc)

    @model_validator(mode="after")
    def _box_has_an_area(self) -> Annotation:
        if self.box and not (self.box[2] > self.box[0] and self.box[3] > self.box[1]):
            raise ValueError("box: need row1 > row0 and column1 > column0")
        return self

    def fits(self, task: Task | None) -> Annotation:
        """This annotation, when its label is an answer to the task.

        Raises:
            ValueError: When the label is neither a class of the task nor one of `NOT_A_CLASS`.
        """
        if task is not None and self.label not in (*task.classes, *NOT_A_CLASS):
            raise ValueError(f"label: need one of {', '.join((*task.classes, *NOT_A_CLASS))}, "
                             f"got {self.label!r}.")
        return self


SET_BY_THE_STORE = ("created", "model_version", "prediction")


def parse_annotation(document: Any) -> Annotation:
    """An `Annotation` from a client's JSON: text, bytes or the parsed object.

    Raises:
        ValueError: With one sentence that names the first fault; also for a value that only the
            store may set.
    """
    if isinstance(document, (str, bytes)):
        try:
            document = json.loads(document)
        except (ValueError, RecursionError) as error:
            raise ValueError("annotation: need a JSON object, got something else.") from error
    if not isinstance(document, dict):
        raise ValueError(f"annotation: need a JSON object, got {type(document).__name__}.")
    taken = [name for name in SET_BY_THE_STORE if name in document]
    if taken:
        raise ValueError(f"annotation: {', '.join(taken)} is set by the server. Leave it out.")
    return checked_annotation(document)


def checked_annotation(document: dict[str, Any]) -> Annotation:
    """An `Annotation` from a stored or exported object; faults as in `parse_annotation`."""
    try:
        return Annotation.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "annotation"
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"annotation: {place}: {message}.") from error


def plain_json(value: Any, *, limit: int) -> Any:
    """The value, when both databases can hold it as JSON.

    Raises:
        ValueError: For numbers JSON cannot say, NUL or broken Unicode, or too much of it.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("need plain JSON: finite numbers, whole Unicode") from error
    if len(text) > limit:
        raise ValueError(f"need at most {limit} characters of JSON, got {len(text)}")
    if "\\u0000" in text:
        raise ValueError("need text without NUL")
    return value


def finite(value: Any) -> float | None:
    """A finite number as float; None for anything else (a prediction need not carry every score)."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
