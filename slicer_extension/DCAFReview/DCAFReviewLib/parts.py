"""`Parts`: what belongs to an open case is asked for piece by piece: picture, history, answer, map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .call import ServerError
from .client import Answer, Server
from .errands import Errands
from .nrrd import Grid
from .state import CLASS_ACTIVATION, Case, Connection
from .topics import Topics


class Parts(Topics):
    """Fetching the parts of a case; what a session is made of besides lies in `Cases` and `Session`."""

    connection: Connection
    case: Case | None
    ahead: Case | None   # fetched before it is opened
    _errands: Errands
    _server: Server | None
    _failed: Callable[[ServerError], None]

    def _fetch(self, case: Case) -> None:
        """Asks for whatever of a case is neither there nor on its way."""
        server = self._server
        unanswered = self.connection.model is not None and case.kept_document is None
        if unanswered and case.stored and case.map_kind:
            case.map_note = ""
            self._ask_model(case, "heat")   # first, as it takes longest; the kept answer may come before it
        if not case.local and case.picture is None:
            self._ask_for(case, "picture", server.picture, case.uid, then=lambda grid: self._seen(case, grid))
        if case.stored and case.kept_history is None and case is not self.ahead:
            self._ask_for(case, "history", server.history, case.uid, then=lambda told: self._told(case, told))
        if unanswered:
            if case.stored:
                self._ask_for(case, "document", server.prediction, case.uid, failed=self._unscored(case),
                              then=lambda document: self._kept(case, document))
            else:
                self._ask_model(case, "document")
        elif case.kept_document is not None:
            self._map(case)

    def _ask_for(self, case: Case, part: str, function: Callable[..., Any], *args: Any,
                 then: Callable[[Any], None], failed: Callable[[ServerError], None] | None = None) -> None:
        if part in case.awaited:
            return

        def came(value: Any) -> None:
            case.awaited.discard(part)
            self._changed_of(case, "case")
            then(value)

        def came_not(error: ServerError) -> None:
            case.awaited.discard(part)
            self._changed_of(case, "case")
            if case is not self.ahead:   # nobody has asked for that one yet
                (failed or self._failed)(error)

        case.awaited.add(part)
        self._changed_of(case, "case")
        self._errands.ask(function, *args, then=came, failed=came_not, owner=case, about=part)

    def _unscored(self, case: Case) -> Callable[[ServerError], None]:
        def failed(error: ServerError) -> None:
            if error.status == 404:   # nobody has asked the model about it yet; with the map we have
                if "heat" not in case.awaited and case.kept_document is None:
                    self._ask_model(case, "document")
            else:
                self._failed(error)

        return failed

    def _ask_model(self, case: Case, part: str) -> None:
        """Asks the model, with the chosen map at once: one look at the image serves both."""
        kind, target = (None, None) if case.map_note else (case.map_kind or None, case.map_target)
        if case.stored:
            function, args = self._server.infer, (case.uid, kind, target)
        else:
            function, args = self._server.infer_file, (case.file[0], kind, target, case.file[1])

        def failed(error: ServerError) -> None:
            if part == "heat":
                case.map_note = str(error)
                if error.kind == "refused" and case.kept_document is None and "document" not in case.awaited:
                    self._ask_model(case, "document")   # there is no such map; an answer there may be
            self._failed(error)

        if part == "heat" and part not in case.awaited:
            case.map_asked = kind, target
        self._ask_for(case, part, function, *args, failed=failed,
                      then=lambda answer: self._answered(case, answer, kind, target))

    def _kept(self, case: Case, document: dict[str, Any]) -> None:
        if case.kept_document is not None:
            return   # the model itself was quicker, and knows better
        if not self._of_another_model(document):
            self._answered(case, Answer(document))
        elif "heat" not in case.awaited:
            self._ask_model(case, "document")   # the model of now has not been asked about it

    def _take_stored(self, case: Case, document: dict[str, Any] | None) -> None:
        """Takes over what the server had stored when it handed the case out; newer than what is known."""
        known = case.kept_document
        if document is None or (known and known["model"]["version"] == document["model"]["version"]):
            return
        case.kept_heats.clear()
        case.kept_document = None if self._of_another_model(document) else document

    def _of_another_model(self, document: dict[str, Any] | None) -> bool:
        """Whether a document is not the answer of the model that stands at the server."""
        model = self.connection.model
        return bool(document and model) and document["model"]["version"] != model["version"]

    def _answered(self, case: Case, answer: Answer, kind: str | None = None,
                  target: str | None = None) -> None:
        known, case.kept_document = case.kept_document, answer.document
        if known and known["model"]["version"] != answer.document["model"]["version"]:
            case.kept_heats.clear()   # maps of a model that is no longer there
        if answer.heat is not None and kind is not None:
            case.kept_heats[kind, self._target(case, kind, target)] = answer.heat
        self._map(case)
        self._changed_of(case, "case", "heat")

    def _map(self, case: Case) -> None:
        """Has the chosen map ready, or says why there is none."""
        if case.kept_document is None or not case.map_kind:
            return
        case.map_target = self._target(case, case.map_kind, case.map_target)
        case.map_note = ""
        if case.map_target is not None:
            below = case.below_cutoff(case.map_target)
            title = dict(self.connection.classes).get(case.map_target, case.map_target)
            case.map_note = f"No map for {title}: {below}." if below else ""
        known = (case.map_kind, case.map_target) in case.kept_heats
        if "heat" in case.awaited and case.map_asked[0] == case.map_kind \
                and self._target(case, *case.map_asked) == case.map_target:
            return
        if not known and not case.map_note and self.connection.model is not None:
            self._drop_heat(case)
            self._ask_model(case, "heat")

    def _drop_parts(self) -> None:
        """Calls off what is on its way for the open case; `_fetch` asks for it again."""
        if self.case is not None:
            for part in self.case.awaited:
                self._errands.drop(self.case, part)
            self.case.awaited.clear()

    def _drop_heat(self, case: Case) -> None:
        self._errands.drop(case, "heat")
        case.awaited.discard("heat")

    @staticmethod
    def _target(case: Case, kind: str, target: str | None) -> str | None:
        """The class a map is of: only a class activation is of one, by default the most probable."""
        if kind != CLASS_ACTIVATION:
            return None
        return target or case.kept_document["prediction"][0]["label"]

    def _seen(self, case: Case, grid: Grid) -> None:
        case.picture = grid
        self._changed_of(case, "picture")

    def _told(self, case: Case, history: list[dict[str, Any]]) -> None:
        case.kept_history = tuple(history)

    def _changed_of(self, case: Case, *topics: str) -> None:
        if case is not self.ahead:   # of which nothing is shown yet
            self._mark(*topics)
