"""What a session knows: the connection, the page of the worklist, the open case, training, the last word.

Values that a session fills and a widget reads; nothing here does anything by itself.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .nrrd import Grid

CLASS_ACTIVATION = "class_activation"


@dataclass
class Connection:
    """The server and who one is there.

    ``state`` is ``off``, ``connecting``, ``on`` or ``lost`` (it comes back by itself). ``classes`` are
    ``(name, title)``; ``besides`` the answers that are no class; ``maps`` the kinds of heat map, the
    default first, of which those ``unfaithful`` look alike when the network's weights are made random.
    """

    state: str = "off"
    message: str = ""
    url: str = ""
    reader: str = ""
    role: str = "reader"
    tokens: bool = False
    task_title: str = ""
    classes: tuple[tuple[str, str], ...] = ()
    besides: tuple[str, ...] = ()
    model: dict[str, Any] | None = None
    maps: tuple[str, ...] = ()
    unfaithful: tuple[str, ...] = ()
    orders: tuple[str, ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """Everything a case may be answered with."""
        return (*(name for name, _ in self.classes), *self.besides)

    def welcome(self, answer: dict[str, Any], reader: str) -> None:
        """Takes over what ``/dcaf/session`` says.

        Raises:
            ValueError: When nobody knows who reads, or it is no such answer.
        """
        task = answer["task"]
        if not isinstance(task, dict) or not isinstance(task.get("classes"), list):
            raise ValueError("server: need an answer of a DCAF server, got another form. Check the address.")
        if not (answer.get("reader") or reader):
            raise ValueError("reader: need your name, as this server has no tokens, got none. Enter it.")
        self.reader, self.role = answer.get("reader") or reader, answer["role"]
        self.tokens = bool(answer.get("tokens"))
        self.task_title = task.get("title") or task.get("name", "")
        self.classes = tuple((item["name"], item.get("title") or item["name"])
                             for item in task.get("classes", ()))
        self.besides = tuple(task.get("besides", ()))
        self.model = answer["model"]
        self.maps, self.orders = tuple(answer.get("maps", ())), tuple(answer.get("orders", ()))
        self.unfaithful = tuple(answer.get("unfaithful") or ())
        self.state, self.message = "on", ""


@dataclass
class Page:
    """A page of the worklist; ``descending`` None is the order's natural direction."""

    order: str = "entropy"
    descending: bool | None = None
    status: str = "unread"
    label: str = ""
    offset: int = 0
    limit: int = 100
    total: int = 0
    items: tuple[dict[str, Any], ...] = ()
    busy: bool = False


@dataclass
class Training:
    """The last training as the server tells it, and ``changes`` when a new model has re-ranked the pool."""

    state: str = "idle"
    message: str = ""
    stage: str = ""
    done: int = 0
    total: int = 0
    note: str = ""
    curve: tuple[dict[str, Any], ...] = ()
    candidate_nll: float | None = None
    published_nll: float | None = None
    version: str | None = None
    previous_version: str | None = None
    changes: dict[str, Any] | None = None

    @property
    def running(self) -> bool:
        """Whether it is not over yet."""
        return self.state in ("running", "ranking")


@dataclass(frozen=True)
class Notice:
    """The last thing to tell; severity ``info``, ``warning`` or ``error``."""

    text: str = ""
    severity: str = "info"


@dataclass(frozen=True)
class Sent:
    """An annotation that was submitted."""

    key: str
    uid: str = field(repr=False)
    document: dict[str, Any] = field(repr=False)


@dataclass(eq=False)
class Case:
    """An open case.

    Args:
        uid: Its id in the server's store; empty when it is not there.
        name: Short, for a title.
        stored: Whether the server's store has it, so that it can be answered.
        opened: When, by ``clock``.
        clock: Seconds.
        revealed: Whether the model's answer may be seen; until then `document`, `heat`, `history` and
            `other_labels` are empty, whatever has come.
        local: The picture comes from the viewer, not from the server.
        file: ``(path, frame)`` of an image that is not in the store.
    """

    uid: str
    name: str
    stored: bool
    opened: float
    clock: Callable[[], float] = field(repr=False)
    revealed: bool = True
    local: bool = False
    file: tuple[Path, int | None] | None = field(default=None, repr=False)
    picture: Grid | None = None
    map_kind: str = ""
    map_target: str | None = None
    map_note: str = ""
    map_asked: tuple[str | None, str | None] = (None, None)
    choice: str | None = None
    first_choice: str | None = None
    comment: str = ""
    confidence: float | None = None
    point: tuple[float, float] | None = None
    box: tuple[float, float, float, float] | None = None
    adjudicate: bool = False
    leased: bool = False
    renew_at: float = 0.0
    revealed_after_s: float | None = None
    shown: dict[str, Any] = field(default_factory=dict)
    awaited: set[str] = field(default_factory=set)
    kept_document: dict[str, Any] | None = field(default=None, repr=False)
    kept_history: tuple[dict[str, Any], ...] | None = field(default=None, repr=False)
    kept_heats: dict[tuple[str, str | None], Grid] = field(default_factory=dict, repr=False)

    @property
    def loading(self) -> bool:
        """Whether the picture or, when it may be seen, the model's answer is still on its way."""
        answer = {"document", "heat"} & self.awaited and self.kept_document is None
        return "picture" in self.awaited or bool(self.revealed and answer)

    @property
    def document(self) -> dict[str, Any] | None:
        """The prediction document, once it may be seen."""
        return self.kept_document if self.revealed else None

    @property
    def heat(self) -> Grid | None:
        """The heat map of ``(map_kind, map_target)``, once it may be seen."""
        known = self.kept_heats.get((self.map_kind, self.map_target))
        return known if self.revealed and not self.map_note else None

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """Every annotation of the image, oldest first, once they may be seen."""
        return (self.kept_history or ()) if self.revealed else ()

    @property
    def other_labels(self) -> dict[str, str]:
        """``{reader: label}`` when readers differ and nobody has settled it; else empty."""
        reads = {entry["reader"]: entry["label"] for entry in self.history if entry["role"] == "read"}
        settled = any(entry["role"] == "adjudication" for entry in self.history)
        return reads if len(set(reads.values())) > 1 and not settled else {}

    @property
    def seconds(self) -> float:
        """How long it has been open."""
        return self.clock() - self.opened

    def reveal(self) -> None:
        """Lets the model's answer be seen, and remembers what was chosen before."""
        if not self.revealed:
            self.revealed, self.first_choice, self.revealed_after_s = True, self.choice, self.seconds

    def again(self) -> Case:
        """The same case opened anew, with what is known of it and what was answered."""
        return replace(self, opened=self.clock(), leased=False, awaited=set(), shown=dict(self.shown))

    def below_cutoff(self, label: str) -> str:
        """Why there is no class-activation map of a class: it does not reach its cut-off; else empty."""
        document = self.kept_document or {}
        point = document.get("operating_points", {}).get(label)
        if point is None or point["positive"]:
            return ""
        score = next(entry["score"] for entry in document["prediction"] if entry["label"] == label)
        return f"{score:.0%} does not reach the cut-off of {point['cutoff']:.0%}"

    def annotation(self, reader: str) -> dict[str, Any]:
        """The annotation as it is sent, with a key of its own."""
        seen = self.document
        shown = {"prediction": seen is not None, **(self.shown if self.kept_heats and self.revealed else {}),
                 "model_version": seen["model"]["version"] if seen else None,
                 "first_choice": self.first_choice, "seconds_before_reveal": self.revealed_after_s}
        said = {"label": self.choice, "reader": reader, "comment": self.comment,
                "seconds": round(self.seconds, 1),
                "shown": {name: value for name, value in shown.items() if value is not None},
                "blind": seen is None, "role": "adjudication" if self.adjudicate else "read",
                "key": str(uuid.uuid4()), "confidence": self.confidence, "point": self.point, "box": self.box}
        return {name: value for name, value in said.items() if value is not None}


def short_name(uid: str) -> str:
    """The end of a UID or path, enough to tell cases apart by eye."""
    last = uid.replace("\\", "/").rsplit("/", 1)[-1]
    return last if len(last) <= 24 else f"\u2026{last[-20:]}"
